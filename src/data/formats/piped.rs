//! A source that may pause: standard input or a FIFO. A thread of its own reads it, so that a program that waits
//! for an answer can be told from one that still writes.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

/// Chunks that wait to be taken.
const CHUNKS: usize = 16;
const CHUNK_BYTES: usize = 1 << 16;

/// A source that a thread of its own reads ahead.
pub(super) struct Piped {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    flow: Flow,
}

/// Tells whether a [`Piped`] has bytes.
#[derive(Clone, Default)]
pub(super) struct Flow(Arc<State>);

#[derive(Default)]
struct State {
    unread: AtomicUsize,
    is_ended: AtomicBool,
}

impl Piped {
    pub(super) fn start(mut source: impl Read + Send + 'static) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS);
        let flow = Flow::default();
        let state = Arc::clone(&flow.0);
        thread::Builder::new().name("input".into()).spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let result = match source.read(&mut chunk) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(0) => break,
                    Ok(count) => {
                        chunk.truncate(count);
                        state.unread.fetch_add(count, Ordering::SeqCst);
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
        Ok(Self { chunks, chunk: Vec::new(), at: 0, flow })
    }

    pub(super) fn flow(&self) -> Flow {
        self.flow.clone()
    }
}

impl Flow {
    /// Returns true if nothing is there although the source has not ended: the next read may block for long.
    ///
    /// Who waits for an answer gets it at once. A program that writes faster than it is answered loses nothing: its rows
    /// gather while the first of them are computed.
    pub(super) fn is_paused(&self) -> bool {
        self.0.unread.load(Ordering::SeqCst) == 0 && !self.0.is_ended.load(Ordering::SeqCst)
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
        self.at += count;
        self.flow.0.unread.fetch_sub(count, Ordering::SeqCst);
    }
}

impl Read for Piped {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}
