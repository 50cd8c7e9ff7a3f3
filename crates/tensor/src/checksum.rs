//! A sum over bytes that shows silent corruption.

/// An odd number whose bits look random: 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Σ wᵢ (2 G i + 1) mod 2⁶⁴ over the 8-byte little-endian words `wᵢ` of some bytes, the last word filled up with zeros; `first` is
/// the number of the first word, so that parts can be summed on their own and added (wrapping).
///
/// Every weight is odd, so a change within one word always changes the sum; words that change places do too, unless they are
/// equal. It is no hash against an adversary: it is as fast as memory, and made for bits that turn over.
pub fn checksum(bytes: &[u8], first: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let weight = |i: u64| first.wrapping_add(i).wrapping_mul(GOLDEN).wrapping_mul(2).wrapping_add(1);
    let mut sum = 0u64;
    for (i, word) in words.iter().enumerate() {
        sum = sum.wrapping_add(u64::from_le_bytes(*word).wrapping_mul(weight(i as u64)));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    sum.wrapping_add(u64::from_le_bytes(last).wrapping_mul(weight(words.len() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts_and_parts_add_up() {
        let bytes: Vec<u8> = (0..203u32).map(|i| (i * 37 % 251) as u8).collect();
        let sum = checksum(&bytes, 5);
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&other, 5), sum, "bit {bit}");
        }
        let (a, b) = bytes.split_at(88);
        assert_eq!(checksum(a, 5).wrapping_add(checksum(b, 5 + 11)), sum);
        let mut swapped = bytes.clone();
        swapped.swap(8, 16);
        assert_ne!(checksum(&swapped, 5), sum);
        assert_eq!(checksum(&[], 5), 0);
    }
}
