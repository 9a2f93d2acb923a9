//! What is read of a text that has more tokens than the model takes at once.

use std::ops::Range;

use crate::config::data::{DataConfig, LongText};

/// How much of a text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most tokens that the model reads at once, special ones included.
    pub tokens: usize,
    /// What becomes of longer texts.
    pub long_text: LongText,
    /// Of `LongText::Windows`.
    pub max_windows: usize,
}

impl From<usize> for Limit {
    /// Longer texts are cut.
    fn from(tokens: usize) -> Self {
        Self { tokens, long_text: LongText::Cut, max_windows: 1 }
    }
}

impl Limit {
    /// As a configuration says.
    #[must_use]
    pub fn of(data: &DataConfig, tokens: usize) -> Self {
        Self { tokens, long_text: data.long_text, max_windows: data.max_windows }
    }

    /// What happens to texts that are not read whole, after "texts".
    #[must_use]
    pub fn of_longer_texts(&self) -> String {
        let Self { tokens, max_windows, .. } = self;
        match self.long_text {
            LongText::Cut => format!("are cut at data.max_length = {tokens} tokens"),
            LongText::HeadTail => {
                format!("lose their middle: {tokens} tokens are read (data.max_length, data.long_text: head_tail)")
            }
            LongText::Windows => {
                format!("are cut behind {max_windows} windows of {tokens} tokens (data.max_windows, data.max_length)")
            }
        }
    }

    /// The places of a text's own tokens that are read, of `count`, where `room` of them fit beside the special ones.
    pub(super) fn reading(&self, count: usize, room: usize) -> Reading {
        if count <= room {
            return Reading { windows: vec![[0..count, count..count]], was_cut: false };
        }
        match self.long_text {
            LongText::Cut => Reading { windows: vec![[0..room, room..room]], was_cut: true },
            LongText::HeadTail => {
                let head = room.div_ceil(2);
                Reading { windows: vec![[0..head, count - (room - head)..count]], was_cut: true }
            }
            LongText::Windows => {
                let windows = count.div_ceil(room).min(self.max_windows);
                let read = count.min(windows * room);
                // Of one size: a window of a few tokens would count as much as a whole one.
                let edge = |window: usize| read * window / windows;
                let places = |window: usize| [edge(window)..edge(window + 1), read..read];
                Reading { windows: (0..windows).map(places).collect(), was_cut: read < count }
            }
        }
    }
}

/// Two stretches of a text's tokens, of which the second may be empty.
type Places = [Range<usize>; 2];

/// What is read of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// At least one.
    pub(super) windows: Vec<Places>,
    /// Whether something is not read.
    pub(super) was_cut: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(long_text: LongText, count: usize, room: usize) -> (Vec<Vec<usize>>, bool) {
        let limit = Limit { tokens: 0, long_text, max_windows: 3 };
        let Reading { windows, was_cut } = limit.reading(count, room);
        (windows.into_iter().map(|places| places.into_iter().flatten().collect()).collect(), was_cut)
    }

    #[test]
    fn a_text_that_fits_is_read_whole_in_one_window() {
        for long_text in [LongText::Cut, LongText::HeadTail, LongText::Windows] {
            assert_eq!(reading(long_text, 5, 5), (vec![vec![0, 1, 2, 3, 4]], false));
            assert_eq!(reading(long_text, 0, 5), (vec![vec![]], false));
        }
    }

    #[test]
    fn head_and_tail_share_the_room() {
        assert_eq!(reading(LongText::HeadTail, 9, 5), (vec![vec![0, 1, 2, 7, 8]], true));
        assert_eq!(reading(LongText::HeadTail, 9, 1), (vec![vec![0]], true));
        assert_eq!(reading(LongText::Cut, 9, 5), (vec![vec![0, 1, 2, 3, 4]], true));
    }

    #[test]
    fn windows_follow_each_other_and_are_of_one_size() {
        assert_eq!(reading(LongText::Windows, 6, 5), (vec![vec![0, 1, 2], vec![3, 4, 5]], false));
        assert_eq!(reading(LongText::Windows, 7, 3), (vec![vec![0, 1], vec![2, 3], vec![4, 5, 6]], false));
        assert_eq!(reading(LongText::Windows, 11, 3).0.concat(), (0..9).collect::<Vec<_>>());
        assert!(reading(LongText::Windows, 11, 3).1);
    }
}
