//! What stream sockets bring and take, the same on both carriers.

use block::{Buffer, SharedBuffer};

/// Longest head of a [`Piece`].
pub const HEAD_BYTES_MAX: usize = 48;

/// Input a stream holds that nobody took, at most; then its socket is left alone. What one
/// system call brought may come on top.
pub const INPUT_BYTES_MAX: usize = 256 << 10;

/// Parts handed to the kernel in one send; the limit of `sendmsg` (`UIO_MAXIOV`).
pub(crate) const PARTS_MAX: usize = 1024;

/// A stream socket as its carrier knows it; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// What happened on a stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// There is more in `input`.
    Input {
        /// As given to `add_stream`.
        token: u64,
    },
    /// The end of a `receive_into`; short when the stream ended, which is told next.
    Filled {
        /// As given to `add_stream`.
        token: u64,
        /// The buffer that was lent.
        buffer: Buffer,
        /// Bytes of it that hold what came.
        filled: usize,
    },
    /// The end of a `send`, whether the peer took it or is gone.
    Sent {
        /// As given to `add_stream`.
        token: u64,
        /// What was handed over.
        pieces: Vec<Piece>,
    },
    /// The peer closed or the socket failed. Nothing comes after the input that is there.
    Ended {
        /// As given to `add_stream`.
        token: u64,
    },
}

impl StreamEvent {
    /// The stream's token.
    pub fn token(&self) -> u64 {
        match self {
            Self::Input { token }
            | Self::Filled { token, .. }
            | Self::Sent { token, .. }
            | Self::Ended { token } => *token,
        }
    }
}

/// What follows a piece's head.
#[derive(Debug, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    None,
    /// Bytes made for this piece.
    Bytes(Vec<u8>),
    /// A view of a buffer.
    Shared(SharedBuffer),
}

/// A stretch of output: a short head, kept inline, and a body.
#[derive(Debug)]
pub struct Piece {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    /// What follows the head.
    pub body: Body,
    /// The sender's own mark.
    pub tag: u32,
}

impl Piece {
    /// Makes a piece without a head.
    #[inline]
    pub fn new(body: Body, tag: u32) -> Self {
        Self {
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            body,
            tag,
        }
    }

    /// Adds bytes to the head.
    ///
    /// # Panics
    /// When the head gets longer than [`HEAD_BYTES_MAX`].
    #[inline]
    #[must_use]
    pub fn put(mut self, bytes: &[u8]) -> Self {
        let start = usize::from(self.head_bytes);
        let end = start + bytes.len();
        let place = self.head.get_mut(start..end);
        place
            .expect("no head is longer than HEAD_BYTES_MAX")
            .copy_from_slice(bytes);
        self.head_bytes = end as u8;
        self
    }

    /// Head and body; either may be empty.
    #[inline]
    pub fn parts(&self) -> [&[u8]; 2] {
        let head = self.head.get(..usize::from(self.head_bytes));
        let body = match &self.body {
            Body::None => &[],
            Body::Bytes(bytes) => bytes.as_slice(),
            Body::Shared(data) => data.as_slice(),
        };
        [head.unwrap_or_default(), body]
    }

    /// Bytes of head and body.
    #[inline]
    pub fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Gives what is left of `pieces` after `sent_bytes` to `take`, as much as one call may carry.
pub(crate) fn gather<'a>(pieces: &'a [Piece], sent_bytes: usize, mut take: impl FnMut(&'a [u8])) {
    let (mut skip, mut parts) = (sent_bytes, 0);
    for part in pieces.iter().flat_map(Piece::parts) {
        let skipped = skip.min(part.len());
        skip -= skipped;
        if let Some(rest) = part.get(skipped..).filter(|rest| !rest.is_empty()) {
            take(rest);
            parts += 1;
            if parts == PARTS_MAX {
                return;
            }
        }
    }
}

/// Streams by index, their places reused under a new generation.
#[derive(Debug)]
pub(crate) struct Streams<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Streams<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Streams<T> {
    /// The index the next stream gets.
    pub(crate) fn next_index(&self) -> u32 {
        let end = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.free.last().copied().unwrap_or(end)
    }

    pub(crate) fn insert(&mut self, stream: T) -> StreamId {
        let index = self.next_index();
        if self.free.pop().is_none() {
            self.places.push((0, None));
        }
        let mut generation = 0;
        if let Some(place) = self.places.get_mut(index as usize) {
            generation = place.0;
            place.1 = Some(stream);
        }
        StreamId { index, generation }
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<&T> {
        let (generation, stream) = self.places.get(id.index as usize)?;
        stream.as_ref().filter(|_| *generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut T> {
        let (generation, stream) = self.places.get_mut(id.index as usize)?;
        stream.as_mut().filter(|_| *generation == id.generation)
    }

    pub(crate) fn at(&mut self, index: u32) -> Option<&mut T> {
        self.places.get_mut(index as usize)?.1.as_mut()
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let place = self.places.get_mut(index as usize)?;
        let stream = place.1.take()?;
        // A place whose numbers are used up is not used again.
        if let Some(next) = place.0.checked_add(1) {
            place.0 = next;
            self.free.push(index);
        }
        Some(stream)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let numbered = (0u32..).zip(&mut self.places);
        numbered.filter_map(|(index, place)| Some((index, place.1.as_mut()?)))
    }
}
