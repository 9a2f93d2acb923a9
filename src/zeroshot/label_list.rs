//! Keeps an answer to what can become a JSON list over the labels: `["a", "b"]`, each label at most once.
//!
//! An automaton over bytes. The tokens that may come next are found by walking the vocabulary, sorted by bytes, along
//! the bytes that the automaton allows: the walk sees tokens that fit, not the whole vocabulary. A grammar engine such as
//! llguidance would do it for any grammar; that no label comes twice is not context-free in practice, and this is small.

use std::ops::RangeInclusive;

use super::prompt::quoted;
use super::vocabulary::Vocabulary;

/// The answers that are allowed.
pub struct LabelLists {
    /// Labels as JSON strings, sorted by bytes, and the place of each among the labels.
    names: Vec<(Vec<u8>, usize)>,
    vocabulary: Vocabulary,
    /// What comes before the list: nothing, or a space.
    lead: &'static [u8],
    /// How many labels a list must and may have.
    fewest: usize,
    most: usize,
}

/// An answer so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    at: At,
    /// True for each label that is listed, in the order of the labels.
    listed: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// So many bytes of the lead are there.
    Lead(usize),
    /// Behind `[`.
    Open,
    /// Inside the names `first .. end`, which share so many bytes.
    Name { first: usize, end: usize, depth: usize },
    /// Behind a label.
    Named,
    /// Behind `,`.
    Comma,
    /// Behind `, `.
    Space,
    /// Behind `]`.
    Closed,
}

impl LabelLists {
    /// Lists of as many `labels` as `counts` says. `token_bytes` are those of each token, by id, of
    /// which the model has `rows`.
    #[must_use]
    pub fn new(
        labels: &[String],
        counts: RangeInclusive<usize>,
        lead: &'static str,
        token_bytes: &[Option<Vec<u8>>],
        rows: usize,
    ) -> Self {
        let mut names: Vec<(Vec<u8>, usize)> =
            labels.iter().enumerate().map(|(index, label)| (quoted(label).into_bytes(), index)).collect();
        names.sort_unstable();
        Self {
            names,
            vocabulary: Vocabulary::new(token_bytes, rows),
            lead: lead.as_bytes(),
            fewest: *counts.start(),
            most: *counts.end(),
        }
    }

    /// The answer before its first byte.
    #[must_use]
    pub fn start(&self) -> Answer {
        Answer { at: At::Lead(0), listed: vec![false; self.names.len()] }
    }

    /// The bytes that may come next.
    fn next_bytes(&self, answer: &Answer, out: &mut Vec<u8>) {
        out.clear();
        let count = answer.listed.iter().filter(|listed| **listed).count();
        let may_name = count < self.most;
        match answer.at {
            At::Lead(done) => out.push(self.lead.get(done).copied().unwrap_or(b'[')),
            At::Open => {
                out.extend(may_name.then_some(b'"'));
                out.extend((self.fewest == 0).then_some(b']'));
            }
            At::Name { first, end, depth } => {
                for (name, label) in &self.names[first..end] {
                    if !answer.listed[*label] && !out.contains(&name[depth]) {
                        out.push(name[depth]);
                    }
                }
            }
            At::Named => {
                out.extend(may_name.then_some(b','));
                out.push(b']');
            }
            At::Comma => out.push(b' '),
            At::Space => out.push(b'"'),
            At::Closed => {}
        }
    }

    /// The answer with one more byte, which must be one that may come next.
    fn step(&self, answer: &mut Answer, byte: u8) {
        answer.at = match answer.at {
            At::Lead(done) if done < self.lead.len() => At::Lead(done + 1),
            At::Lead(_) => At::Open,
            At::Open | At::Named if byte == b']' => At::Closed,
            At::Open | At::Space => At::Name { first: 0, end: self.names.len(), depth: 1 },
            At::Named => At::Comma,
            At::Comma => At::Space,
            At::Name { first, end, depth } => {
                let part = &self.names[first..end];
                let start = first + part.partition_point(|(name, _)| name[depth] < byte);
                let stop = first + part.partition_point(|(name, _)| name[depth] <= byte);
                // The quote that ends a name is in no other place of any: the name is one.
                match &self.names[start] {
                    (name, label) if name.len() == depth + 1 => {
                        answer.listed[*label] = true;
                        At::Named
                    }
                    _ => At::Name { first: start, end: stop, depth: depth + 1 },
                }
            }
            At::Closed => At::Closed,
        };
    }

    /// The tokens that may come next, and the answer with each.
    #[must_use]
    pub fn allowed(&self, answer: &Answer) -> Vec<(u32, Answer)> {
        let mut out = Vec::new();
        self.walk(answer, (0, self.vocabulary.len()), 0, &mut out);
        out
    }

    fn walk(&self, answer: &Answer, (first, end): (usize, usize), depth: usize, out: &mut Vec<(u32, Answer)>) {
        let complete = if depth == 0 { 0 } else { self.vocabulary.complete(first, end, depth) };
        out.extend((first..first + complete).map(|place| (self.vocabulary.id(place), answer.clone())));
        let first = first + complete;
        if first == end {
            return;
        }
        let mut bytes = Vec::new();
        self.next_bytes(answer, &mut bytes);
        for byte in bytes {
            let part = self.vocabulary.narrow(first, end, depth, byte);
            if part.0 < part.1 {
                let mut next = answer.clone();
                self.step(&mut next, byte);
                self.walk(&next, part, depth + 1, out);
            }
        }
    }
}

impl Answer {
    /// Whether the list is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.at == At::Closed
    }

    /// True for each label that is listed.
    #[must_use]
    pub fn labels(&self) -> &[bool] {
        &self.listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    const LABELS: [&str; 5] = ["ab", "a", "a\"b", "ä", "works-with::text"];
    const PIECES: [&str; 12] = ["[\"", "[]", "\", \"", "\"]", "a", "ab", "works", " [", "a\"]", "text", "\"x", ", "];

    fn lists(counts: RangeInclusive<usize>, lead: &'static str) -> (LabelLists, Vec<Option<Vec<u8>>>) {
        let mut bytes: Vec<Option<Vec<u8>>> = (0..=255u8).map(|byte| Some(vec![byte])).collect();
        bytes.push(None);
        bytes.extend(PIECES.map(|piece| Some(piece.as_bytes().to_vec())));
        let labels = LABELS.map(str::to_owned);
        (LabelLists::new(&labels, counts, lead, &bytes, bytes.len()), bytes)
    }

    /// Whether some list of different labels begins with these bytes: by trying all of them.
    fn can_begin(bytes: &[u8], counts: &RangeInclusive<usize>, lead: &str) -> bool {
        fn any(bytes: &[u8], text: String, left: &[&str], counts: &RangeInclusive<usize>) -> bool {
            let close = format!("{text}]");
            let is_first = text.trim_start() == "[";
            let count = LABELS.len() - left.len();
            if counts.contains(&count) && close.as_bytes().starts_with(bytes) {
                return true;
            }
            if !bytes.starts_with(text.as_bytes()) && !text.as_bytes().starts_with(bytes) {
                return false;
            }
            if count == *counts.end() {
                return false;
            }
            left.iter().any(|label| {
                let rest: Vec<&str> = left.iter().copied().filter(|other| other != label).collect();
                let next = format!("{text}{}{}", if is_first { "" } else { ", " }, quoted(label));
                next.as_bytes().starts_with(bytes) || any(bytes, next, &rest, counts)
            })
        }
        any(bytes, format!("{lead}["), &LABELS, counts)
    }

    #[test]
    fn the_tokens_that_may_come_next_are_those_that_a_search_finds() {
        for (counts, lead) in [(0..=5, ""), (1..=5, " "), (1..=1, " ")] {
            let (lists, bytes) = lists(counts.clone(), lead);
            for round in 0..30 {
                let (mut answer, mut text) = (lists.start(), Vec::new());
                let mut numbers = [0u32; 64];
                Stream::new(round, 0, 0, Purpose::Base).fill(0, &mut numbers);
                for number in numbers {
                    if answer.is_complete() {
                        break;
                    }
                    let mut allowed = lists.allowed(&answer);
                    allowed.sort_by_key(|(token, _)| *token);
                    let found: Vec<u32> = allowed.iter().map(|(token, _)| *token).collect();
                    let searched = (0..bytes.len() as u32).filter(|&token| {
                        let next = bytes[token as usize].as_ref();
                        next.is_some_and(|next| can_begin(&[&text[..], next].concat(), &counts, lead))
                    });
                    assert_eq!(found, searched.collect::<Vec<_>>(), "{}", String::from_utf8_lossy(&text));
                    let (token, next) = allowed.swap_remove(number as usize % found.len());
                    text.extend(bytes[token as usize].as_ref().unwrap());
                    answer = next;
                }
                assert!(answer.is_complete());
                let listed: Vec<String> = serde_json::from_slice(&text).unwrap();
                let expected: Vec<bool> = LABELS.iter().map(|label| listed.iter().any(|l| l == label)).collect();
                assert_eq!(answer.labels(), expected);
                assert!(counts.contains(&listed.len()));
            }
        }
    }
}
