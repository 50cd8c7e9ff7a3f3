//! Attention: of whole documents, of rows whose past is in a cache, and of rows whose keys and values lie in another tensor.

use std::ops::Range;

use llamero_tensor::{
    Attention, DType, GatheredSegment, Heads, KV_PAGE, KvLayout, PagedSegment, Segments, Shape, Tensor,
};

use super::check_heads;
use crate::Cpu;
use crate::attention::{Document, Gradient, Job, Source, attend, attention_backward};
use crate::exec::Tile;
use crate::gemm::Mat;
use crate::storage::{Storage, Stored, elements, f32s, mat, page, produce};

fn attend_all<E: Stored>(
    cpu: &Cpu,
    qkv: &Tensor,
    heads: Heads,
    documents: Vec<Document<'_>>,
    op: &str,
) -> Attention {
    let (rows, width) = (qkv.rows(), heads.query_width());
    let exec = &cpu.exec;
    let mut lse = exec.memory.stale::<f32>(rows * heads.query);
    let out = produce::<E>(exec, Shape::new(rows, width), |out| {
        let out = Tile::new(out, rows, width, width);
        let lse = Tile::new(&mut lse, rows, heads.query, heads.query);
        attend(exec, &Job { heads, queries: mat(op, qkv), documents, out, lse });
    });
    let lse = Tensor::from_storage(Shape::new(rows, heads.query), DType::F32, Storage::F32(lse));
    Attention { out, lse }
}

/// The runs that are not empty, with their keys and values in `kv` from a column on.
fn documents<'a>(
    segments: &[GatheredSegment],
    (kv, column): (Mat<'a>, usize),
    heads: Heads,
) -> Vec<Document<'a>> {
    let runs = segments.iter().filter(|s| !s.segment.rows.is_empty());
    runs.map(|GatheredSegment { segment, first }| Document {
        first_row: segment.rows.start,
        rows: segment.rows.len(),
        past: segment.past,
        source: Source::Rows {
            keys: kv.from(*first, column),
            values: kv.from(*first, column + heads.kv_width()),
        },
    })
    .collect()
}

/// Whole documents as runs over the keys and values in the same rows.
fn whole(segments: &Segments) -> Vec<GatheredSegment> {
    segments.iter().map(|s| GatheredSegment { segment: s.clone(), first: s.rows.start }).collect()
}

pub(super) fn forward(cpu: &Cpu, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention {
    const OP: &str = "attention";
    check_heads(OP, qkv, heads, segments.total_rows());
    assert!(segments.iter().all(|s| s.past == 0), "attention: a segment has a past; use `attention_paged`");
    let documents = documents(&whole(segments), (mat(OP, qkv), heads.query_width()), heads);
    with_type!(qkv.dtype(), E => attend_all::<E>(cpu, qkv, heads, documents, OP))
}

pub(super) fn gathered(
    cpu: &Cpu,
    (qkv, kv): (&Tensor, &Tensor),
    heads: Heads,
    segments: &[GatheredSegment],
) -> Attention {
    const OP: &str = "attention_gathered";
    check_gathered(OP, (qkv, kv), heads, segments);
    let documents = documents(segments, (mat(OP, kv), 0), heads);
    with_type!(qkv.dtype(), E => attend_all::<E>(cpu, qkv, heads, documents, OP))
}

pub(super) fn paged(
    cpu: &Cpu,
    qkv: &Tensor,
    (layout, layer): (KvLayout, usize),
    segments: &[PagedSegment<'_>],
) -> Tensor {
    const OP: &str = "attention_paged";
    let heads = layout.heads;
    check_heads(OP, qkv, heads, segments.last().map_or(0, |s| s.segment.rows.end));
    let mut next = 0;
    let mut documents = Vec::with_capacity(segments.len());
    for PagedSegment { segment, pages } in segments {
        let (rows, valid) = (segment.rows.len(), segment.past + segment.rows.len());
        let fits = segment.rows.start == next
            && valid <= pages.len() * KV_PAGE
            && layer < layout.layers
            && pages.iter().all(|page| page.dtype() == qkv.dtype());
        fits!("attention_paged", fits, qkv, heads, segment, layer);
        next = segment.rows.end;
        if rows > 0 {
            let pages = pages.iter().take(valid.div_ceil(KV_PAGE)).map(|x| page(OP, x, layout)).collect();
            let source = Source::Pages { pages, layer };
            documents.push(Document { first_row: segment.rows.start, rows, past: segment.past, source });
        }
    }
    with_type!(qkv.dtype(), E => attend_all::<E>(cpu, qkv, heads, documents, OP).out)
}

pub(super) fn append(
    cpu: &Cpu,
    to: &mut Tensor,
    (layout, layer): (KvLayout, usize),
    at: usize,
    (qkv, rows): (&Tensor, Range<usize>),
) {
    const OP: &str = "kv_append";
    check_heads(OP, qkv, layout.heads, qkv.rows());
    let what = format!("{to:?}");
    let fits = at + rows.len() <= KV_PAGE && rows.end <= qkv.rows() && layer < layout.layers;
    assert!(fits, "{OP}: rows {rows:?} of {qkv:?} do not fit layer {layer} of {what} at {at}");
    assert!(to.dtype() == qkv.dtype(), "{OP}: {qkv:?} does not fit {what}");
    match to.storage_mut() {
        Some(Storage::Page(page)) if page.fits(layout, qkv.dtype()) => {
            page.append(&cpu.exec, layer, at, mat(OP, qkv).from(rows.start, 0), rows.len());
        }
        _ => panic!("{OP}: {what} is shared or no page of {layout:?}"),
    }
}

pub(super) fn backward(
    cpu: &Cpu,
    dy: &Tensor,
    qkv: &Tensor,
    saved: &Attention,
    (heads, segments): (Heads, &Segments),
) -> Tensor {
    const OP: &str = "attention_backward";
    check_heads(OP, qkv, heads, segments.total_rows());
    check_saved(OP, (dy, qkv), saved, heads);
    let (rows, width, segments) = (qkv.rows(), heads.query_width(), whole(segments));
    with_type!(qkv.dtype(), E => {
        let (dy, y) = (elements::<E>(OP, dy), elements::<E>(OP, &saved.out));
        produce::<E>(&cpu.exec, qkv.shape(), |out| {
            let out = Tile::new(out, rows, heads.width(), heads.width());
            // SAFETY: different columns.
            let (d_queries, d_kv) =
                unsafe { (out.sub(0, 0, rows, width), out.sub(0, width, rows, 2 * heads.kv_width())) };
            let (queries, kv) = (mat(OP, qkv), (mat(OP, qkv), width));
            let (segments, lse, adds) = (&segments[..], f32s(OP, &saved.lse), false);
            let job = Gradient { heads, segments, queries, kv, dy, y, lse, d_queries, d_kv, adds };
            attention_backward(&cpu.exec, &job, Mat::new(E::data(dy), width));
        })
    })
}

pub(super) fn gathered_backward(
    cpu: &Cpu,
    dy: &Tensor,
    (qkv, kv): (&Tensor, &Tensor),
    saved: &Attention,
    (heads, segments): (Heads, &[GatheredSegment]),
) -> (Tensor, Tensor) {
    const OP: &str = "attention_gathered_backward";
    check_gathered(OP, (qkv, kv), heads, segments);
    check_saved(OP, (dy, qkv), saved, heads);
    let (rows, width) = (qkv.rows(), heads.query_width());
    // Runs of one document add to the same keys, and some keys are seen by no query here.
    let mut sums = cpu.exec.memory.zeros::<f32>(kv.shape().elements());
    let d_queries = with_type!(qkv.dtype(), E => {
        let (dy, y) = (elements::<E>(OP, dy), elements::<E>(OP, &saved.out));
        produce::<E>(&cpu.exec, Shape::new(rows, width), |out| {
            let d_queries = Tile::new(out, rows, width, width);
            let d_kv = Tile::new(&mut sums, kv.rows(), kv.cols(), kv.cols());
            let (queries, kv) = (mat(OP, qkv), (mat(OP, kv), 0));
            let (lse, adds) = (f32s(OP, &saved.lse), true);
            let job = Gradient { heads, segments, queries, kv, dy, y, lse, d_queries, d_kv, adds };
            attention_backward(&cpu.exec, &job, Mat::new(E::data(dy), width));
        })
    });
    (d_queries, Tensor::from_storage(kv.shape(), DType::F32, Storage::F32(sums)))
}

fn check_gathered(op: &str, (qkv, kv): (&Tensor, &Tensor), heads: Heads, segments: &[GatheredSegment]) {
    check_heads(op, qkv, heads, qkv.rows());
    let fits = kv.cols() == 2 * heads.kv_width() && kv.dtype() == qkv.dtype();
    assert!(
        fits && GatheredSegment::fit(segments, qkv.rows(), kv.rows()),
        "{op}: shapes do not fit: qkv {qkv:?} kv {kv:?} {heads:?} {segments:?}"
    );
}

fn check_saved(op: &str, (dy, qkv): (&Tensor, &Tensor), saved: &Attention, heads: Heads) {
    let Attention { out, lse } = saved;
    let fits = dy.shape() == out.shape()
        && dy.shape() == Shape::new(qkv.rows(), heads.query_width())
        && lse.shape() == Shape::new(qkv.rows(), heads.query);
    assert!(fits, "{op}: shapes do not fit: dy {dy:?} qkv {qkv:?} y {out:?} lse {lse:?}");
}
