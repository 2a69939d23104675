//! The daemon's socket: the first frame with its descriptors, frames both ways, and what was asked
//! and not yet answered.

use parking_lot::Mutex;
use plugin::protocol::{
    self, ASK_TIMEOUT_S, Frame, FromProcess, Hello, PREFIX_BYTES, ROOTS_MAX, ToProcess,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::collections::HashMap;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// Both directions of the socket.
pub(crate) struct Connection {
    reader: Mutex<UnixStream>,
    writer: Mutex<UnixStream>,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    last_id: u64,
    waiting: HashMap<u64, SyncSender<Vec<u8>>>,
}

impl Connection {
    /// Takes the socket from standard input, which becomes `/dev/null`, and reads the first frame:
    /// its content and the descriptors that came with it.
    pub(crate) fn take_over() -> io::Result<(Self, Hello, Vec<OwnedFd>)> {
        let mut stream = take_standard_input()?;
        let mut prefix = [0; PREFIX_BYTES];
        let descriptors = receive(&stream, &mut prefix)?;
        let frame: Frame<ToProcess> = protocol::read_rest(&mut stream, prefix)?;
        let ToProcess::Hello(hello) = frame.head else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the first frame is no hello",
            ));
        };
        let connection = Self {
            writer: Mutex::new(stream.try_clone()?),
            reader: Mutex::new(stream),
            asked: Mutex::default(),
        };
        Ok((connection, hello, descriptors))
    }

    /// Reads the next frame; `None` when the daemon closed the socket.
    pub(crate) fn read(&self) -> io::Result<Option<Frame<ToProcess>>> {
        protocol::read_frame(&mut *self.reader.lock())
    }

    /// Sends a frame.
    pub(crate) fn send(&self, head: &FromProcess, body: &[u8]) -> io::Result<()> {
        let frame = protocol::encode(head, body)?;
        self.writer.lock().write_all(&frame)
    }

    /// Asks the daemon and waits for its answer.
    pub(crate) fn ask(&self, call: u64, method: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let (sender, answer) = sync_channel(1);
        let id = {
            let mut asked = self.asked.lock();
            asked.last_id += 1;
            let id = asked.last_id;
            asked.waiting.insert(id, sender);
            id
        };
        let sent = self.send(
            &FromProcess::Ask {
                id,
                call,
                method: method.to_owned(),
            },
            body,
        );
        // The daemon answers within its own time limit; a second more is for the way.
        let timeout = Duration::from_secs(ASK_TIMEOUT_S + 1);
        let answer = sent.and_then(|()| {
            answer
                .recv_timeout(timeout)
                .map_err(|error| io::Error::other(error.to_string()))
        });
        self.asked.lock().waiting.remove(&id);
        answer
    }

    /// Hands an answer to whoever asked.
    pub(crate) fn answer(&self, id: u64, body: Vec<u8>) {
        if let Some(sender) = self.asked.lock().waiting.remove(&id) {
            // The one who asked may have given up.
            let _ = sender.try_send(body);
        }
    }
}

/// Moves descriptor 0 away from where a plugin's children would inherit it.
#[expect(
    unsafe_code,
    reason = "descriptor 0 is ours alone: this runs before anything else"
)]
fn take_standard_input() -> io::Result<UnixStream> {
    // SAFETY: nothing else uses descriptor 0; it is given back below.
    let mut standard_input = unsafe { OwnedFd::from_raw_fd(0) };
    let stream = UnixStream::from(standard_input.try_clone()?);
    let null = std::fs::File::open("/dev/null")?;
    let replaced = rustix::io::dup2(&null, &mut standard_input);
    // Descriptor 0 stays open for the life of the process.
    std::mem::forget(standard_input);
    replaced?;
    Ok(stream)
}

/// Reads the first bytes of the first frame and the descriptors that ride on them.
fn receive(stream: &UnixStream, prefix: &mut [u8; PREFIX_BYTES]) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOTS_MAX + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(prefix)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes != PREFIX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the daemon sent no hello",
        ));
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(descriptors)
}
