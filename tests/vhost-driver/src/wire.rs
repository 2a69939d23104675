//! Messages, as vhost-user.rst of QEMU has them, over a blocking socket.

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Numbers of the messages a block device needs.
#[expect(missing_docs, reason = "named as in the protocol's document")]
pub mod number {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Bits of the features.
#[expect(missing_docs, reason = "named as in the specification")]
pub mod feature {
    pub const RO: u64 = 1 << 5;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of the protocol features.
#[expect(missing_docs, reason = "named as in the protocol's document")]
pub mod protocol_feature {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// How long an answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message as it travels.
pub fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [number, VERSION | flags, payload.len() as u32] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A connection to a back end.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
}

impl Connection {
    /// Takes over a connected socket.
    pub fn new(socket: UnixStream) -> Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// The socket, to send odd bytes by.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends a message that is not answered.
    pub fn tell(&self, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(&message(number, 0, payload), fds)
    }

    /// Sends a message and waits for it to be acknowledged; whether it was done.
    pub fn ask_done(&self, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.send(&message(number, FLAG_NEED_REPLY, payload), fds)?;
        let (reply, _) = self.reply(number)?;
        let code: [u8; 8] = reply.try_into().ok().context("an odd acknowledgement")?;
        Ok(u64::from_le_bytes(code) == 0)
    }

    /// Sends a message that has a reply of its own, and waits for it.
    pub fn ask(&self, number: u32, payload: &[u8]) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        self.send(&message(number, 0, payload), &[])?;
        self.reply(number)
    }

    /// Asks for a number.
    pub fn ask_number(&self, number: u32) -> Result<u64> {
        let (reply, _) = self.ask(number, &[])?;
        let value: [u8; 8] = reply.try_into().ok().context("an odd number")?;
        Ok(u64::from_le_bytes(value))
    }

    /// Sends bytes with descriptors on the first of them.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            bail!("too many descriptors");
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
        anyhow::ensure!(sent == bytes.len(), "{sent} bytes of a message were sent");
        Ok(())
    }

    /// Waits for the reply to a message.
    pub fn reply(&self, number: u32) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut header = [0; 12];
        let mut fd = None;
        self.receive(&mut header, &mut fd)?;
        let [a, b, c, d, e, f, g, h, size @ ..] = header;
        let got = u32::from_le_bytes([a, b, c, d]);
        let flags = u32::from_le_bytes([e, f, g, h]);
        anyhow::ensure!(got == number, "{number} was answered by {got}");
        anyhow::ensure!(flags & FLAG_REPLY != 0, "{number} was answered by no reply");
        let mut payload = vec![0; u32::from_le_bytes(size) as usize];
        self.receive(&mut payload, &mut fd)?;
        Ok((payload, fd))
    }

    fn receive(&self, mut into: &mut [u8], fd: &mut Option<OwnedFd>) -> Result<()> {
        while !into.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(into)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = recvmsg(&self.socket, &mut parts, &mut ancillary, flags)?.bytes;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    fd.get_or_insert(fds.last().context("no descriptor")?);
                }
            }
            anyhow::ensure!(got > 0, "the back end closed the connection");
            into = into.split_at_mut(got).1;
        }
        Ok(())
    }
}
