//! Token ids by the bytes of their texts.

/// The tokens that stand for text, sorted by their bytes.
pub(super) struct Vocabulary {
    sorted: Vec<(Vec<u8>, u32)>,
}

impl Vocabulary {
    /// Tokens from the bytes of each, of which the model has `rows`.
    pub(super) fn new(bytes: &[Option<Vec<u8>>], rows: usize) -> Self {
        let known = bytes.iter().take(rows).enumerate();
        let texts = known.filter_map(|(id, bytes)| Some((bytes.clone().filter(|bytes| !bytes.is_empty())?, id as u32)));
        let mut sorted: Vec<(Vec<u8>, u32)> = texts.collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// All tokens.
    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The id of a token, by its place.
    pub(super) fn id(&self, place: usize) -> u32 {
        self.sorted[place].1
    }

    /// The tokens at the front of the places `first .. end`, all of which share `depth` bytes, that have no more.
    pub(super) fn complete(&self, first: usize, end: usize, depth: usize) -> usize {
        self.sorted[first..end].iter().take_while(|(bytes, _)| bytes.len() == depth).count()
    }

    /// Of the places `first .. end`, those whose byte at `depth` is `byte`.
    pub(super) fn narrow(&self, first: usize, end: usize, depth: usize, byte: u8) -> (usize, usize) {
        let part = &self.sorted[first..end];
        let start = part.partition_point(|(bytes, _)| bytes.get(depth).is_none_or(|found| *found < byte));
        let stop = part.partition_point(|(bytes, _)| bytes.get(depth).is_none_or(|found| *found <= byte));
        (first + start, first + stop)
    }
}
