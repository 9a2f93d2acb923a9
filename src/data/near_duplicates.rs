//! Texts that nearly repeat each other: the Jaccard similarity of their sets of three words in a row, found by MinHash
//! (Broder, 1997) and then computed exactly.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use crate::rng::{Purpose, Stream};

/// Two texts are near duplicates from this similarity on.
pub const SIMILAR: f64 = 0.8;
/// Hashes of a text, in bands: two texts of similarity 0.8 share a band with a chance of 0.9998.
const BANDS: usize = 16;
const ROWS: usize = 4;
/// Words in a row.
const WORDS: usize = 3;
/// Texts that share a band with more others than this are boilerplate; comparing all of them would take long.
const MOST_IN_BAND: usize = 200;

/// Pairs of texts, earlier one first, with their similarity: in the order of the first text, then of the second. Equal
/// texts have 1.
#[must_use]
pub fn near_duplicates<T: AsRef<str> + Sync>(texts: &[T]) -> Vec<(usize, usize, f64)> {
    let sets: Vec<HashSet<u64>> = texts.par_iter().map(|text| shingles(text.as_ref())).collect();
    let seeds = seeds();
    let signatures: Vec<Vec<u64>> = sets.par_iter().map(|set| signature(set, &seeds)).collect();
    let mut candidates: HashSet<(usize, usize)> = HashSet::new();
    for band in 0..BANDS {
        let mut buckets: HashMap<&[u64], Vec<usize>> = HashMap::new();
        for (text, signature) in signatures.iter().enumerate().filter(|(text, _)| !sets[*text].is_empty()) {
            let bucket = buckets.entry(&signature[band * ROWS..][..ROWS]).or_default();
            if bucket.len() < MOST_IN_BAND {
                candidates.extend(bucket.iter().map(|&other| (other, text)));
                bucket.push(text);
            }
        }
    }
    let mut pairs: Vec<(usize, usize, f64)> = candidates
        .into_par_iter()
        .map(|(a, b)| (a, b, jaccard(&sets[a], &sets[b])))
        .filter(|(.., similarity)| *similarity >= SIMILAR)
        .collect();
    pairs.sort_by_key(|&(a, b, _)| (a, b));
    pairs
}

/// The similarity of two texts.
#[must_use]
pub fn similarity(a: &str, b: &str) -> f64 {
    jaccard(&shingles(a), &shingles(b))
}

/// Hashes of each three words in a row, lower case; of a shorter text, of all of it.
fn shingles(text: &str) -> HashSet<u64> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    match words.len() {
        0 => HashSet::new(),
        1..WORDS => HashSet::from([hash(&words)]),
        _ => words.windows(WORDS).map(hash).collect(),
    }
}

/// FNV-1a: the same on every machine.
fn hash(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn seeds() -> Vec<u64> {
    let mut numbers = vec![0.0f32; 2 * BANDS * ROWS];
    Stream::new(0, 0, 0, Purpose::Base).uniform(0, 1.0, &mut numbers);
    numbers.chunks_exact(2).map(|pair| u64::from(pair[0].to_bits()) << 32 | u64::from(pair[1].to_bits())).collect()
}

fn signature(set: &HashSet<u64>, seeds: &[u64]) -> Vec<u64> {
    let least = |seed: &u64| set.iter().map(|&shingle| mix(shingle ^ seed)).min().unwrap_or(0);
    seeds.iter().map(least).collect()
}

/// The finalizer of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn jaccard(a: &HashSet<u64>, b: &HashSet<u64>) -> f64 {
    let both = a.intersection(b).count();
    if both == 0 { 0.0 } else { both as f64 / (a.len() + b.len() - both) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_differ_in_a_word_or_in_signs_are_found_and_others_are_not() {
        let long: Vec<String> = (0..40).map(|word| format!("word{word}")).collect();
        let changed = long.iter().take(39).cloned().chain(["other".to_owned()]).collect::<Vec<_>>().join(", ");
        let long = long.join(" ");
        let mut texts =
            vec![long.clone(), "a b c d".to_owned(), long.to_uppercase(), changed, String::new(), String::new()];
        texts.extend((0..500).map(|n| format!("text {n} is about {} and about {}", n * 7, n * 13)));
        let found = near_duplicates(&texts);
        assert_eq!(found.iter().map(|&(a, b, _)| (a, b)).collect::<Vec<_>>(), [(0, 2), (0, 3), (2, 3)], "{found:?}");
        // 37 of 38 shingles are shared, of 39.
        assert_eq!((found[0].2, found[1].2), (1.0, 37.0 / 39.0));
        assert_eq!(similarity("one two", "One, TWO!"), 1.0);
    }
}
