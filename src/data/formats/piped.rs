//! A source that may pause: standard input or a FIFO. A thread of its own reads it, so that a program that waits
//! for an answer can be told from one that still writes.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use memchr::memchr2_iter;

/// Chunks that wait to be taken.
const CHUNKS: usize = 16;
const CHUNK_BYTES: usize = 1 << 16;

/// A source that a thread of its own reads ahead.
pub(super) struct Piped {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    lines: Lines,
    flow: Flow,
}

/// Tells whether a [`Piped`] has lines.
#[derive(Clone, Default)]
pub(super) struct Flow(Arc<State>);

#[derive(Default)]
struct State {
    /// Lines that are there and were not read to their end; blank ones do not count.
    unread: AtomicUsize,
    is_ended: AtomicBool,
}

/// Counts lines that are not blank, at their ends. The second half of \r\n ends none.
#[derive(Default)]
struct Lines {
    is_in_line: bool,
}

impl Lines {
    fn count(&mut self, bytes: &[u8]) -> usize {
        let (mut count, mut start) = (0, 0);
        for end in memchr2_iter(b'\r', b'\n', bytes) {
            count += usize::from(self.is_in_line || end > start);
            self.is_in_line = false;
            start = end + 1;
        }
        self.is_in_line |= start < bytes.len();
        count
    }
}

impl Piped {
    pub(super) fn start(mut source: impl Read + Send + 'static) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS);
        let flow = Flow::default();
        let state = Arc::clone(&flow.0);
        thread::Builder::new().name("input".into()).spawn(move || {
            let mut lines = Lines::default();
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let result = match source.read(&mut chunk) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(0) => break,
                    Ok(count) => {
                        chunk.truncate(count);
                        state.unread.fetch_add(lines.count(&chunk), Ordering::SeqCst);
                        Ok(chunk)
                    }
                    Err(error) => Err(error),
                };
                let is_last = result.is_err();
                if sender.send(result).is_err() || is_last {
                    break;
                }
            }
            state.is_ended.store(true, Ordering::SeqCst);
        })?;
        Ok(Self { chunks, chunk: Vec::new(), at: 0, lines: Lines::default(), flow })
    }

    pub(super) fn flow(&self) -> Flow {
        self.flow.clone()
    }

    /// The next bytes, which stay to be read: until they are enough, or the source ends.
    pub(super) fn peek(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> io::Result<&[u8]> {
        while !is_enough(&self.chunk[self.at..]) {
            let Ok(more) = self.chunks.recv() else { break };
            self.chunk.drain(..self.at);
            self.at = 0;
            self.chunk.extend(more?);
        }
        Ok(&self.chunk[self.at..])
    }
}

impl Flow {
    /// Returns true if no whole line is there although the source has not ended: the next read may block for long.
    ///
    /// Who waits for an answer gets it at once. A program that writes faster than it is answered loses nothing: its rows
    /// gather while the first of them are computed.
    pub(super) fn is_paused(&self) -> bool {
        self.0.unread.load(Ordering::SeqCst) == 0 && !self.0.is_ended.load(Ordering::SeqCst)
    }

    /// The same, after a moment in which a program that writes without waiting has written on.
    pub(super) fn stays_paused(&self) -> bool {
        const LOOKS: usize = 5;
        for _ in 0..LOOKS {
            if !self.is_paused() {
                return false;
            }
            thread::sleep(Duration::from_micros(100));
        }
        self.is_paused()
    }
}

impl BufRead for Piped {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            self.at = 0;
            // The thread has ended: so has the source.
            self.chunk = self.chunks.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        let lines = self.lines.count(&self.chunk[self.at..self.at + count]);
        self.at += count;
        self.flow.0.unread.fetch_sub(lines, Ordering::SeqCst);
    }
}

impl Read for Piped {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_at_their_ends_however_the_bytes_are_cut() {
        let text = b"a\r\nb\n\n\r\rcc\n\"d\re\"\r\n half";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let count: usize = text.chunks(size).map(|piece| lines.count(piece)).sum();
            assert_eq!((count, lines.is_in_line), (5, true), "{size}");
        }
    }
}
