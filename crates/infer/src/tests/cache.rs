//! Several sequences in one pass, and their growth.

use llamero_autograd::Tape;
use llamero_model::{Input, Recompute};
use llamero_tensor::DType;

use super::{CONTEXT, backend, bits, config, ids, model};
use crate::cache::KvCache;

#[test]
fn a_pass_over_several_sequences_equals_a_pass_over_each() {
    let backend = backend();
    let model = model(&config(), &*backend, DType::F32, 3);
    let pass = |cache: &mut KvCache, batch: &[(usize, usize)], tokens: &[u32]| {
        let segments = cache.begin(batch);
        let hidden = {
            let mut tape = Tape::infer_with(&*backend, cache);
            model.forward(&mut tape, Input::Tokens(tokens), &segments, Recompute::Nothing).value().clone()
        };
        cache.commit();
        backend.download(&hidden)
    };
    let (a, b) = (ids(1, 100), ids(2, 40));
    let mut alone = [KvCache::new(1, CONTEXT), KvCache::new(1, CONTEXT)];
    let mut expected = Vec::new();
    for part in [0..70, 70..71, 71..100] {
        expected.push(pass(&mut alone[0], &[(0, part.len())], &a[part]));
    }
    for part in [0..3, 3..30, 30..40] {
        expected.push(pass(&mut alone[1], &[(0, part.len())], &b[part]));
    }

    let mut both = KvCache::new(2, CONTEXT);
    let mut found = vec![Vec::new(); 6];
    for (pass_number, (of_a, of_b)) in
        [(0..70, 0..3), (70..71, 3..30), (71..100, 30..40)].into_iter().enumerate()
    {
        // In either order.
        let swap = pass_number == 1;
        let mut batch = vec![(0, of_a.len()), (1, of_b.len())];
        let mut parts = [&a[of_a.clone()], &b[of_b]];
        if swap {
            batch.reverse();
            parts.reverse();
        }
        let out = pass(&mut both, &batch, &parts.concat());
        let (mut first, mut second) = (out.clone(), out);
        let cut = batch[0].1 * config().dim;
        second.drain(..cut);
        first.truncate(cut);
        if swap {
            std::mem::swap(&mut first, &mut second);
        }
        found[pass_number] = first;
        found[3 + pass_number] = second;
    }
    assert_eq!((both.len(0), both.len(1)), (100, 40));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(bits(found), bits(expected), "pass {i}");
    }
}

#[test]
fn a_pass_that_is_not_committed_leaves_no_trace() {
    let mut cache = KvCache::new(1, 8);
    cache.begin(&[(0, 5)]);
    assert_eq!(cache.len(0), 0);
    let segments = cache.begin(&[(0, 3)]);
    cache.commit();
    assert_eq!((cache.len(0), segments.total_rows()), (3, 3));
    cache.truncate(0, 7);
    assert_eq!(cache.len(0), 3);
    cache.truncate(0, 2);
    assert_eq!(cache.begin(&[(0, 6)]).positions().collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
}

#[test]
#[should_panic(expected = "9 positions in a context of 8")]
fn more_than_the_context_panics() {
    KvCache::new(1, 8).begin(&[(0, 9)]);
}
