use llamero_tokenizer::*;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = Instant::now();
    let tok = Tokenizer::load(&a[1]).unwrap();
    println!("load {:?}", t.elapsed());
    std::fs::create_dir_all(&a[2]).unwrap();
    let t = Instant::now();
    tok.save_hf(&a[2]).unwrap();
    println!("save_hf {:?}", t.elapsed());
    let t = Instant::now();
    Tokenizer::load(format!("{}/tokenizer.json", a[2])).unwrap();
    println!("load json {:?}", t.elapsed());
    for f in &a[3..] {
        let text = std::fs::read_to_string(f).unwrap();
        let t = Instant::now();
        let n: usize = split(&text).count();
        let dt = t.elapsed().as_secs_f64();
        println!("{f}: split {:.1} MB/s, {n} pieces", text.len() as f64 / 1e6 / dt);
        let t = Instant::now();
        let ids = tok.encode(&text);
        let dt = t.elapsed().as_secs_f64();
        println!(
            "{f}: encode {:.1} MB/s, {} ids of {} bytes",
            text.len() as f64 / 1e6 / dt,
            ids.len(),
            text.len()
        );
        let t = Instant::now();
        let s = tok.decode(&ids).unwrap();
        println!("decode {:.1} MB/s", text.len() as f64 / 1e6 / t.elapsed().as_secs_f64());
        assert_eq!(s, text);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let t = Instant::now();
        let (tr, r) = Trainer::new(32000).train(lines.iter(), &mut |_, _| ()).unwrap();
        println!("train {:?} {r:?} {}", t.elapsed(), tr.vocab_size());
    }
}
