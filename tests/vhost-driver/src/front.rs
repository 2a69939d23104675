//! The front end: connects, negotiates, shares memory, starts queues.

use crate::wire::{Connection, feature, number, protocol_feature};
use crate::{Ask, Done, Guest, Layout, Queue, Status};
use anyhow::{Context, Result, ensure};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Without an answer for this long a request has failed.
const PATIENCE_MS: i64 = 20_000;

/// How the device is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Queues.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Largest request.
    pub data_bytes: u32,
    /// Features that are left out of those offered.
    pub without: u64,
    /// Keeps an inflight region.
    pub inflight: bool,
    /// The memory cannot be made shorter.
    pub sealed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 64,
            data_bytes: 16 << 10,
            without: 0,
            inflight: true,
            sealed: true,
        }
    }
}

/// A front end with its guest.
#[derive(Debug)]
pub struct FrontEnd {
    options: Options,
    guest: Guest,
    connection: Connection,
    features: u64,
    inflight: Option<(Vec<u8>, OwnedFd)>,
    /// The queues.
    pub queues: Vec<Queue>,
}

impl FrontEnd {
    /// Connects to a back end and starts its queues.
    pub fn connect(socket: &Path, options: Options) -> Result<Self> {
        let socket = UnixStream::connect(socket).context("connecting to the back end")?;
        Self::on(socket, options)
    }

    /// As [`FrontEnd::connect`] on a connected socket.
    pub fn on(socket: UnixStream, options: Options) -> Result<Self> {
        let connection = Connection::new(socket)?;
        let features = negotiate(&connection, &options)?;
        let layout = |offset| {
            let has = |bit| features & bit != 0;
            Layout::at(
                offset,
                options.queue_size,
                options.data_bytes,
                has(feature::INDIRECT_DESC),
                has(feature::EVENT_IDX),
            )
        };
        let bytes = (0..options.queues).fold(0, |offset, _| layout(offset).end());
        let guest = Guest::new(bytes as usize, options.sealed)?;
        let mut queues = Vec::new();
        let mut offset = 0;
        for _ in 0..options.queues {
            let layout = layout(offset);
            offset = layout.end();
            queues.push(Queue::new(&guest, layout)?);
        }
        let mut front = Self {
            options,
            guest,
            connection,
            features,
            inflight: None,
            queues,
        };
        if options.inflight {
            let mut info = vec![0; 16];
            info.extend(options.queues.to_le_bytes());
            info.extend(options.queue_size.to_le_bytes());
            // The structure's padding in C, which QEMU sends along.
            info.extend([0; 4]);
            let (info, fd) = front.connection.ask(number::GET_INFLIGHT_FD, &info)?;
            front.inflight = Some((info, fd.context("an inflight region without descriptor")?));
        }
        front.start()?;
        Ok(front)
    }

    /// Connects again, to the same back end or its successor, and goes on with what is in flight.
    pub fn reconnect(&mut self, socket: &Path) -> Result<()> {
        let socket = UnixStream::connect(socket).context("connecting to the back end again")?;
        self.reconnect_on(socket)
    }

    /// As [`FrontEnd::reconnect`] on a connected socket.
    pub fn reconnect_on(&mut self, socket: UnixStream) -> Result<()> {
        self.connection = Connection::new(socket)?;
        let features = negotiate(&self.connection, &self.options)?;
        ensure!(
            features == self.features,
            "other features after reconnecting"
        );
        self.start()
    }

    /// The connection, for messages of one's own.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The guest's memory.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The features agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Shares the memory and starts every queue.
    fn start(&mut self) -> Result<()> {
        self.share_memory()?;
        if let Some((info, fd)) = &self.inflight {
            let fd = std::os::fd::AsFd::as_fd(fd);
            let done = self
                .connection
                .ask_done(number::SET_INFLIGHT_FD, info, &[fd])?;
            ensure!(done, "the inflight region is refused");
        }
        (0..self.options.queues).try_for_each(|queue| self.start_queue(queue))
    }

    fn share_memory(&self) -> Result<()> {
        let mut table = Vec::new();
        for field in [
            1,
            Guest::ADDRESS,
            self.guest.len_bytes(),
            Guest::FRONT_ADDRESS,
            0,
        ] {
            table.extend(field.to_le_bytes());
        }
        let fds = [self.guest.fd()];
        let done = self
            .connection
            .ask_done(number::SET_MEM_TABLE, &table, &fds)?;
        ensure!(done, "the memory is refused");
        Ok(())
    }

    /// Empties the inflight region, as a front end does when the guest resets its device.
    pub fn forget_inflight(&self) -> Result<()> {
        if let Some((info, fd)) = &self.inflight {
            let (size, _) = info.split_first_chunk().context("an odd description")?;
            let zeroes = vec![0; u64::from_le_bytes(*size) as usize];
            ensure!(rustix::io::pwrite(fd, &zeroes, 0)? == zeroes.len());
        }
        Ok(())
    }

    /// Starts a queue where it stands.
    pub fn start_queue(&mut self, index: u16) -> Result<()> {
        let queue = self
            .queues
            .get(usize::from(index))
            .context("no such queue")?;
        let layout = queue.layout();
        let state = |value: u32| {
            let mut payload = u32::from(index).to_le_bytes().to_vec();
            payload.extend(value.to_le_bytes());
            payload
        };
        let base = u32::from(queue.used_index());
        let mut addresses = state(0);
        for offset in [layout.table, layout.used, layout.available] {
            addresses.extend((Guest::FRONT_ADDRESS + offset).to_le_bytes());
        }
        addresses.extend(0_u64.to_le_bytes());
        let [kick, call, error] = queue.fds();
        let fd = u64::from(index).to_le_bytes();
        for (number, payload, fds) in [
            (number::SET_VRING_NUM, &*state(layout.size.into()), &[][..]),
            (number::SET_VRING_BASE, &state(base), &[]),
            (number::SET_VRING_ADDR, &addresses, &[]),
            (number::SET_VRING_ERR, &fd, &[error]),
            (number::SET_VRING_CALL, &fd, &[call]),
            (number::SET_VRING_KICK, &fd, &[kick]),
            (number::SET_VRING_ENABLE, &state(1), &[]),
        ] {
            let done = self.connection.ask_done(number, payload, fds)?;
            ensure!(done, "message {number} is refused for queue {index}");
        }
        Ok(())
    }

    /// Stops a queue; where it stands.
    pub fn stop_queue(&mut self, index: u16) -> Result<u16> {
        let mut payload = u32::from(index).to_le_bytes().to_vec();
        payload.extend([0; 4]);
        let (reply, _) = self.connection.ask(number::GET_VRING_BASE, &payload)?;
        let base = reply.get(4..6).context("an odd reply")?;
        Ok(u16::from_le_bytes([base[0], base[1]]))
    }

    /// The first bytes of the configuration.
    pub fn config(&self, bytes: u32) -> Result<Vec<u8>> {
        let mut payload = 0_u32.to_le_bytes().to_vec();
        payload.extend(bytes.to_le_bytes());
        payload.extend([0; 4]);
        payload.resize(12 + bytes as usize, 0);
        let (reply, _) = self.connection.ask(number::GET_CONFIG, &payload)?;
        Ok(reply
            .get(12..)
            .context("configuration is refused")?
            .to_vec())
    }

    /// Does one request on the first queue and waits for its answer.
    pub fn one(&mut self, ask: Ask, data: &[u8]) -> Result<(Done, Vec<u8>)> {
        let queue = self.queues.first_mut().context("no queue")?;
        let slot = queue.slot().context("no free slot")?;
        queue.fill(slot, data);
        queue.put(slot, ask);
        queue.tell();
        let mut done = Vec::new();
        while done.is_empty() {
            ensure!(
                queue.wait(&mut done, PATIENCE_MS)?,
                "{ask:?} is not answered"
            );
            ensure!(!queue.is_broken(), "{ask:?} broke the queue");
        }
        let done = done.remove(0);
        Ok((done, queue.data(done.slot, done.written.saturating_sub(1))))
    }

    /// Writes at a sector.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<Status> {
        let bytes = u32::try_from(data.len())?;
        Ok(self.one(Ask::Write { sector, bytes }, data)?.0.status)
    }

    /// Reads at a sector.
    pub fn read(&mut self, sector: u64, bytes: u32) -> Result<Vec<u8>> {
        let (done, data) = self.one(Ask::Read { sector, bytes }, &[])?;
        ensure!(done.status == Status::Ok, "reading: {:?}", done.status);
        Ok(data)
    }

    /// Flushes.
    pub fn flush(&mut self) -> Result<Status> {
        Ok(self.one(Ask::Flush, &[])?.0.status)
    }
}

/// Agrees on everything that is offered but what is to be left out.
fn negotiate(connection: &Connection, options: &Options) -> Result<u64> {
    let offered = connection.ask_number(number::GET_FEATURES)?;
    ensure!(offered & feature::PROTOCOL_FEATURES != 0, "an old back end");
    let protocol = connection.ask_number(number::GET_PROTOCOL_FEATURES)?;
    ensure!(
        protocol & protocol_feature::REPLY_ACK != 0,
        "nothing is acknowledged"
    );
    connection.tell(number::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[])?;
    connection.tell(number::SET_OWNER, &[], &[])?;
    let queues = connection.ask_number(number::GET_QUEUE_NUM)?;
    ensure!(
        queues >= u64::from(options.queues),
        "the back end has {queues} queues"
    );
    let features = offered & !options.without;
    let done = connection.ask_done(number::SET_FEATURES, &features.to_le_bytes(), &[])?;
    ensure!(done, "features {features:#x} are refused");
    Ok(features)
}
