//! Moves a device's bytes and descriptors over its socket, as far as they go without waiting.

use super::device::Device;
use super::protocol::{FDS_MAX, Violation, violation};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// What moving came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Something moved; there may be more.
    Some,
    /// The device has no use for the socket now.
    Idle,
    /// The socket has to become ready first.
    Blocked,
    /// The other side is gone.
    Closed,
}

/// Receives once.
///
/// # Errors
/// The front end does not speak the protocol.
pub fn receive(device: &mut Device, socket: impl AsFd) -> Result<Moved, Violation> {
    let into = device.receive_into()?;
    if into.is_empty() {
        return Ok(Moved::Idle);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = match recvmsg(socket, &mut [IoSliceMut::new(into)], &mut ancillary, flags) {
        Ok(got) => got,
        Err(Errno::AGAIN) => return Ok(Moved::Blocked),
        Err(Errno::INTR) => return Ok(Moved::Some),
        Err(_) => return Ok(Moved::Closed),
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return violation("a message came with more descriptors than any has");
    }
    if got.bytes == 0 {
        return Ok(Moved::Closed);
    }
    device.received(got.bytes, fds)?;
    Ok(Moved::Some)
}

/// Sends once.
pub fn send(device: &mut Device, socket: impl AsFd) -> Moved {
    let Some((bytes, fd)) = device.output() else {
        return Moved::Idle;
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        // One fits.
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
        Ok(count) => {
            device.sent(count);
            Moved::Some
        }
        Err(Errno::AGAIN) => Moved::Blocked,
        Err(Errno::INTR) => Moved::Some,
        Err(_) => Moved::Closed,
    }
}
