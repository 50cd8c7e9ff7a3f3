//! The same files give the same bytes.

use super::*;

/// Enough text for several row groups, with duplicates, in an order given by `step`.
fn write_corpus(root: &Path, step: usize) {
    let count = 90;
    for i in 0..count {
        let i = (i * step) % count;
        let text: String = if i < 12 {
            (0..12_000)
                .map(|line| format!("Line {line} of the long document {i} is here to take up room.\n"))
                .collect()
        } else {
            prose(i / 2)
        };
        write_all(root, &[(&format!("part{}/doc{i}.md", i % 5), text.as_bytes())]);
    }
    write_all(root, &[("bad.bin", b"\0\0"), ("empty", b"")]);
}

#[test]
fn threads_do_not_show() {
    let root = TempDir::new().unwrap();
    write_corpus(root.path(), 1);
    let config = CurateConfig { max_corpus_bytes: Some(12 << 20), ..config_for(&[root.path()]) };
    let run_with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&config)).unwrap()
    };
    let (one, three) = (run_with(1), run_with(3));
    assert_eq!(one.inventory.id, three.inventory.id);
    assert!(one.bytes == three.bytes, "files differ between 1 and 3 threads");
}

#[test]
fn neither_place_nor_order_nor_time_shows() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write_corpus(here.path(), 1);
    let moved = there.path().join("another/place");
    write_corpus(&moved, 53);
    let (one, two) = (run(&config_for(&[here.path()])).unwrap(), run(&config_for(&[&moved])).unwrap());
    assert!(one.row_groups > 1, "the corpus must span row groups for this test to mean something");
    assert_eq!(one.inventory.id, two.inventory.id);
    assert_eq!(one.inventory.id.len(), 32);
    assert!(one.bytes == two.bytes, "files differ after a move");
    let place = here.path().to_str().unwrap();
    assert!(one.bytes[1..].iter().all(|bytes| !String::from_utf8_lossy(bytes).contains(place)));
}

#[test]
fn any_change_of_content_or_path_changes_the_inventory() {
    let id = |files: &[(&str, &[u8])]| inventory(&config_for(&[folder(files).path()]), &()).unwrap().id;
    let base = id(&[("a", b"one"), ("b", b"two")]);
    assert_eq!(base, id(&[("b", b"two"), ("a", b"one")]));
    let others = [
        id(&[("a", b"one"), ("b", b"twp")]),
        id(&[("a", b"two"), ("b", b"one")]),
        id(&[("a", b"one"), ("c", b"two")]),
        id(&[("a", b"one")]),
        id(&[("a", b"one"), ("b", b"two"), ("c", b"")]),
    ];
    assert!(others.iter().all(|other| *other != base), "{base} {others:?}");
}
