use super::address::Address;
use super::said::{say, words};
use super::shuffle::{Arrivals, Batches, slots};
use crate::CurateError;
use crate::plan::BrokenPart;

fn broken(problem: &str) -> CurateError {
    CurateError::Record { what: "a", problem: problem.to_owned() }
}

#[test]
fn words_survive_debug_output_of_debug_output() {
    let error = broken("\"quoted\"\n\\ and ünïcode;");
    let told = format!("{:?}", format!("task 3: {:?}", say(broken("\"quoted\"\n\\ and ünïcode;"))));
    assert_eq!(words(&told).as_deref(), Some(error.to_string().as_str()));
    assert_eq!(words("something else"), None);
}

#[test]
fn addresses_need_a_scheme_a_host_and_a_port() {
    let address = Address::parse("df://localhost:50050").unwrap();
    assert_eq!(
        (address.to_string().as_str(), address.url().as_str()),
        ("df://localhost:50050", "http://localhost:50050")
    );
    for bad in [
        "localhost:50050",
        "df://localhost",
        "df://:1",
        "df://host:0",
        "df://host:x",
        "df://a/b:1",
        "http://a:1",
    ] {
        let error = Address::parse(bad).unwrap_err().to_string();
        assert!(error.contains(bad) && error.contains("df://HOST:PORT"), "{error}");
    }
}

#[test]
fn every_partition_has_a_slot_of_its_own() {
    for partitions in [1, 2, 7, 1000] {
        let mut slots = slots(partitions).unwrap();
        assert_eq!(slots.len(), partitions as usize);
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), partitions as usize);
    }
}

#[test]
fn rows_arrive_as_they_were_sent() {
    let mut sent = Vec::new();
    let mut send = |batch| {
        sent.push(batch);
        Ok(())
    };
    let mut batches = Batches::new(&mut send);
    batches.partition(9, 1).unwrap();
    let large = vec![7; 3 << 20];
    for (key, value) in [(&b""[..], &b"x"[..]), (b"k", &large), (b"k", b"")] {
        batches.record(9, key, value).unwrap();
    }
    let torn = BrokenPart::new("a", Some(7), "torn");
    batches.broken(9, torn.clone()).unwrap();
    batches.flush().unwrap();
    assert!(sent.len() > 1, "a large record has a batch of its own");
    let mut arrivals = Arrivals::default();
    let mut found = Vec::new();
    for batch in &sent {
        arrivals
            .read(batch, &mut |key, value| {
                found.push((key.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
    }
    let expected =
        [(b"".to_vec(), b"x".to_vec()), (b"k".to_vec(), large.clone()), (b"k".to_vec(), Vec::new())];
    assert!(found == expected);
    assert_eq!(arrivals.broken, [torn]);
    assert_eq!(arrivals.partition(&[4, 9]).unwrap(), 1);
    assert!(arrivals.partition(&[9, 4]).is_err());
}

#[test]
fn rows_of_two_partitions_are_refused() {
    let mut sent = Vec::new();
    let mut send = |batch| {
        sent.push(batch);
        Ok(())
    };
    let mut batches = Batches::new(&mut send);
    batches.record(1, b"a", b"").unwrap();
    batches.record(2, b"b", b"").unwrap();
    batches.flush().unwrap();
    let mut arrivals = Arrivals::default();
    let error = arrivals.read(&sent[0], &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("two partitions"), "{error}");
    assert!(Arrivals::default().partition(&[1]).is_err(), "nothing has told the number");
}
