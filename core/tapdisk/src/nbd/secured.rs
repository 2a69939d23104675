//! A session as the transport knows it: in the clear, or under TLS from `STARTTLS` on.

use super::Export;
use super::session::Session as Clear;
use super::tls::Layer;
use crate::frontend::{Answer, Buffers, FrontEnd, Job, Slot};
use block::Buffer;
use uring::Piece;

/// One connection. See the module's page.
#[derive(Debug)]
pub struct Session {
    clear: Clear,
    tls: Option<Box<Layer>>,
}

impl Session {
    /// Begins a session; the greeting is its first output.
    pub fn new(export: Export) -> Self {
        Self {
            clear: Clear::new(export),
            tls: None,
        }
    }

    /// Takes the next bytes of the stream and returns how many of them. It takes less than all of
    /// them when answers have to be given and sent first, when a payload is lent out, and none
    /// when it is ending; the rest is to be offered again. The jobs that came of them wait in
    /// [`Session::next_job`].
    pub fn receive(&mut self, bytes: &[u8], pool: &mut impl Buffers) -> usize {
        let taken = match &mut self.tls {
            None => self.clear.receive(bytes, pool),
            Some(tls) => match tls.receive(bytes, &mut self.clear, pool) {
                Ok(taken) => taken,
                Err(_broken) => {
                    // What rustls has to say about it is still sent.
                    self.clear.lost();
                    bytes.len()
                }
            },
        };
        if self.tls.is_none() && self.clear.starts_tls() {
            self.start_tls(taken < bytes.len());
        }
        self.say_farewell();
        taken
    }

    /// Whoever spoke on before the reply would have it taken as if it came under TLS.
    fn start_tls(&mut self, spoke_on: bool) {
        let unsent = self.clear.drain_handshake();
        let tls = self.clear.tls().filter(|_| !spoke_on);
        self.tls = tls.and_then(|tls| Layer::new(tls, unsent)).map(Box::new);
        if self.tls.is_none() {
            self.clear.lost();
        }
    }

    /// Lends the buffer of a long payload and how much of it is filled, so that what comes next can
    /// be received straight into it; to be given back with [`Session::payload_back`]. Only when
    /// everything received before was taken.
    pub fn lend_payload(&mut self) -> Option<(Buffer, usize)> {
        self.tls.is_none().then(|| self.clear.lend_payload())?
    }

    /// Takes a lent buffer back, with more of it filled.
    pub fn payload_back(&mut self, buffer: Buffer, now_filled: usize, pool: &mut impl Buffers) {
        self.clear.payload_back(buffer, now_filled, pool);
    }

    /// The next job that came of what was received.
    pub fn next_job(&mut self) -> Option<Job> {
        self.clear.next_job()
    }

    /// Answers a job. Every job is answered exactly once, in any order.
    pub fn answer(&mut self, slot: Slot, answer: Answer) {
        self.clear.answer(slot, answer);
        self.say_farewell();
    }

    /// Whether something is to be sent.
    pub fn has_output(&self) -> bool {
        self.clear.has_output() || self.tls.as_ref().is_some_and(|tls| tls.has_output())
    }

    /// What is to be sent, in order. It goes out as a whole before what is taken next, and comes
    /// back with [`Session::sent`].
    pub fn take_output(&mut self) -> Vec<Piece> {
        let pieces = self.clear.take_output();
        match &mut self.tls {
            None => pieces,
            Some(tls) => tls.encrypt(pieces),
        }
    }

    /// Takes back what was sent, or could not be because the peer is gone.
    pub fn sent(&mut self, pieces: Vec<Piece>, pool: &mut impl Buffers) {
        let own = self.tls.as_mut().and_then(|tls| tls.sent());
        self.clear.sent(own.unwrap_or(pieces), pool);
        self.say_farewell();
    }

    /// Takes no more requests; those in flight are answered.
    pub fn end(&mut self) {
        self.clear.end();
        self.say_farewell();
    }

    /// The peer closed or the socket failed: as [`Session::end`], and nothing more is sent. Whether
    /// what was taken to be sent comes back does not matter any more.
    pub fn lost(&mut self) {
        self.clear.lost();
        if let Some(tls) = &mut self.tls {
            tls.discard();
        }
    }

    /// TLS ends in order before the stream does.
    fn say_farewell(&mut self) {
        if let Some(tls) = &mut self.tls
            && self.clear.is_finished()
        {
            tls.say_farewell();
        }
    }

    /// Takes over the disk's new size.
    pub fn set_size(&mut self, size_bytes: u64) {
        self.clear.set_size(size_bytes);
    }

    /// Whether the export was entered. A session that ends in the handshake never was: whoever does
    /// not take its last words is overdue as well.
    pub fn is_greeted(&self) -> bool {
        self.clear.is_greeted()
    }

    /// Whether no more input is taken for good.
    pub fn is_ending(&self) -> bool {
        self.clear.is_ending()
    }

    /// Whether everything is answered and sent, so that the socket can be closed.
    pub fn is_finished(&self) -> bool {
        self.clear.is_finished() && self.tls.as_ref().is_none_or(|tls| tls.is_silent())
    }

    /// Requests between header and end of reply.
    pub fn in_flight(&self) -> usize {
        self.clear.in_flight()
    }
}

impl FrontEnd for Session {
    fn next_job(&mut self, _: &mut impl Buffers) -> Option<Job> {
        self.next_job()
    }

    fn answer(&mut self, slot: Slot, answer: Answer, _: &mut impl Buffers) {
        self.answer(slot, answer);
    }

    fn set_size(&mut self, size_bytes: u64) {
        self.set_size(size_bytes);
    }

    fn end(&mut self) {
        self.end();
    }

    fn lost(&mut self) {
        self.lost();
    }

    fn in_flight(&self) -> usize {
        self.in_flight()
    }

    fn is_finished(&self) -> bool {
        self.is_finished()
    }
}
