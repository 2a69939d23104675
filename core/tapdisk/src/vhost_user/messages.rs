//! What each message does to the device.

use super::config::{self, CONFIG_BYTES_MAX, WRITEBACK_AT, feature};
use super::device::{Device, Output, Ring};
use super::inflight;
use super::memory::{Memory, REGIONS_MAX};
use super::protocol::{
    Header, Message, Request, RingAddresses, Violation, config_change, protocol_feature, violation,
};
use super::queue::{Broken, QUEUE_SIZE_MAX, Queue};
use super::{InflightInfo, QUEUES_MAX};
use rustix::fs::FileType;
use rustix::net::{SendFlags, send};
use std::os::fd::OwnedFd;

/// What a message comes to when it is right.
enum Reply {
    /// Nothing, or an acknowledgement for who wants one.
    Done,
    Number(u64),
    Bytes(Vec<u8>),
    WithFd(Vec<u8>, OwnedFd),
    /// It comes once the queue is drained.
    Later,
}

impl Device {
    /// Tells that `count` bytes were put into [`Device::receive_into`], with these descriptors.
    ///
    /// # Errors
    /// What the front end says makes no sense and it does not wait to hear so: the connection is
    /// of no more use.
    pub fn received(
        &mut self,
        count: usize,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), Violation> {
        self.receiver.received(count, fds)?;
        let Some((header, message)) = self.receiver.take()? else {
            return Ok(());
        };
        let reply = message.and_then(|message| self.carry_out(message));
        let acks = header.wants_ack() && self.protocol_features & protocol_feature::REPLY_ACK != 0;
        let (bytes, fd) = match reply {
            Ok(Reply::Later) => return Ok(()),
            Ok(Reply::Done) if !acks => return Ok(()),
            Ok(Reply::Done) => (0_u64.to_le_bytes().to_vec(), None),
            Ok(Reply::Number(number)) => (number.to_le_bytes().to_vec(), None),
            Ok(Reply::Bytes(bytes)) => (bytes, None),
            Ok(Reply::WithFd(bytes, fd)) => (bytes, Some(fd)),
            Err(why) if acks => {
                tracing::warn!(message = header.number, why = %why, "a message is refused");
                (1_u64.to_le_bytes().to_vec(), None)
            }
            Err(why) => return Err(why),
        };
        self.reply(&header, &bytes, fd);
        Ok(())
    }

    fn reply(&mut self, header: &Header, payload: &[u8], fd: Option<OwnedFd>) {
        self.output.push_back(Output {
            bytes: header.reply(payload),
            fd,
            sent: 0,
        });
    }

    fn carry_out(&mut self, message: Message) -> Result<Reply, Violation> {
        let Message {
            header,
            request,
            fds,
        } = message;
        let fd = |fds: Vec<OwnedFd>| {
            let fd = fds.into_iter().next();
            fd.ok_or_else(|| Violation(format!("message {} has no descriptor", header.number)))
        };
        Ok(match request {
            Request::GetFeatures => Reply::Number(config::features(&self.export)),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => Reply::Number(protocol_feature::ALL),
            Request::SetProtocolFeatures(features) => {
                check_subset(features, protocol_feature::ALL)?;
                self.protocol_features = features;
                Reply::Done
            }
            Request::SetOwner => Reply::Done,
            Request::GetQueueNum => Reply::Number(QUEUES_MAX.into()),
            Request::GetMaxMemSlots => Reply::Number(REGIONS_MAX as u64),
            Request::SetMemTable(regions) => {
                self.memory = Memory::map(&regions, fds)?;
                self.memory_changed()
            }
            Request::AddMemReg(region) => {
                self.memory.add(region, fd(fds)?)?;
                Reply::Done
            }
            Request::RemMemReg(region) => {
                self.memory.remove(&region)?;
                self.memory_changed()
            }
            Request::GetConfig { offset, size, .. } => self.get_config(offset, size),
            Request::SetConfig { offset, bytes } => self.set_config(offset, &bytes)?,
            Request::GetInflightFd(info) => get_inflight(info, &header)?,
            Request::SetInflightFd(info) => {
                let region = inflight::Region::map(info, fd(fds)?);
                self.region = Some(region.map_err(Violation)?);
                Reply::Done
            }
            Request::SetBackendReqFd => {
                self.channel = Some(fd(fds)?);
                Reply::Done
            }
            Request::ResetOwner | Request::ResetDevice => self.reset(),
            Request::GetVringBase { queue } => self.drain(queue, header)?,
            Request::Unknown => {
                return violation(format!("message {} is unknown", header.number));
            }
            request => self.set_up(&request, fds)?,
        })
    }

    fn set_features(&mut self, features: u64) -> Result<Reply, Violation> {
        check_subset(features, config::features(&self.export))?;
        self.features = features;
        if features & feature::PROTOCOL_FEATURES == 0 {
            // Nobody will enable the queues then.
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        Ok(Reply::Done)
    }

    /// Rings that run are found again; one that is not there any more makes its queue useless.
    fn memory_changed(&mut self) -> Reply {
        for index in 0..QUEUES_MAX {
            let Some(ring) = self.rings.get_mut(usize::from(index)) else {
                continue;
            };
            let (Some(queue), Some(addresses)) = (&ring.queue, &ring.addresses) else {
                continue;
            };
            match queue.moved(&self.memory, addresses) {
                Some(queue) => ring.queue = Some(queue),
                None => self.broken(index, Broken::Lost),
            }
        }
        Reply::Done
    }

    fn get_config(&self, offset: u32, size: u32) -> Reply {
        let space = config::space(&self.export, self.writeback);
        let end = offset.saturating_add(size) as usize;
        let asked = space.get(offset as usize..end);
        // A reply without payload is how this message fails.
        let Some(asked) = asked.filter(|_| size <= CONFIG_BYTES_MAX) else {
            return Reply::Bytes(Vec::new());
        };
        let mut bytes = Vec::with_capacity(asked.len().saturating_add(12));
        for field in [offset, size, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(asked);
        Reply::Bytes(bytes)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<Reply, Violation> {
        match bytes {
            [value @ (0 | 1)] if offset == WRITEBACK_AT => {
                self.writeback = *value == 1;
                Ok(Reply::Done)
            }
            _ => {
                let count = bytes.len();
                violation(format!(
                    "{count} bytes of configuration at {offset} cannot be written"
                ))
            }
        }
    }

    /// Stops every queue at once; what was in flight is answered to nobody. The inflight region is
    /// the front end's to empty.
    fn reset(&mut self) -> Reply {
        for ring in &mut self.rings {
            ring.stop();
            *ring = Ring {
                life: ring.life,
                kicks: ring.kicks,
                ..Ring::default()
            };
        }
        self.writeback = true;
        Reply::Done
    }

    fn ring(&mut self, queue: u32) -> Result<(u16, &mut Ring), Violation> {
        let index = u16::try_from(queue).ok();
        let found = index.and_then(|i| Some((i, self.rings.get_mut(usize::from(i))?)));
        found.ok_or_else(|| Violation(format!("there is no queue {queue}")))
    }

    /// Stops a queue; the reply comes with the last answer.
    fn drain(&mut self, queue: u32, header: Header) -> Result<Reply, Violation> {
        let (index, _) = self.ring(queue)?;
        self.draining = Some((index, header));
        self.publish();
        Ok(Reply::Later)
    }

    pub(super) fn finish_draining(&mut self) {
        let Some((index, header)) = self.draining else {
            return;
        };
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return;
        };
        if ring.in_flight > 0 {
            return;
        }
        // Chains of an earlier process that were not begun yet stay marked, and are found by
        // whoever starts the queue next.
        ring.stop();
        ring.kick = None;
        ring.call = None;
        let base = ring.base;
        self.draining = None;
        let mut payload = u32::from(index).to_le_bytes().to_vec();
        payload.extend(u32::from(base).to_le_bytes());
        self.reply(&header, &payload, None);
    }

    /// The messages about one queue.
    fn set_up(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Result<Reply, Violation> {
        let fd = fds.into_iter().next();
        if let Some(fd) = &fd {
            check_eventfd(fd)?;
        }
        match *request {
            Request::SetVringNum { queue, size } => {
                let (_, ring) = self.stopped(queue)?;
                let size = u16::try_from(size).unwrap_or_default();
                if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
                    return violation(format!("queue {queue} cannot have {size} entries"));
                }
                ring.size = size;
            }
            Request::SetVringBase { queue, base } => {
                let (_, ring) = self.stopped(queue)?;
                let base = u16::try_from(base);
                ring.base =
                    base.map_err(|_| Violation(format!("queue {queue} has no such base")))?;
            }
            Request::SetVringAddr { queue, rings } => self.set_addresses(queue, rings)?,
            Request::SetVringKick { queue } => self.start(queue, fd)?,
            Request::SetVringCall { queue } => self.ring(queue)?.1.call = fd,
            Request::SetVringErr { queue } => self.ring(queue)?.1.error = fd,
            Request::SetVringEnable { queue, enable } => self.ring(queue)?.1.enabled = enable,
            _ => return violation("a message about no queue"),
        }
        Ok(Reply::Done)
    }

    fn stopped(&mut self, queue: u32) -> Result<(u16, &mut Ring), Violation> {
        let (index, ring) = self.ring(queue)?;
        if ring.queue.is_some() {
            return violation(format!("queue {queue} is running"));
        }
        Ok((index, ring))
    }

    fn set_addresses(&mut self, queue: u32, rings: RingAddresses) -> Result<(), Violation> {
        let (_, ring) = self.ring(queue)?;
        // The same again is how a front end changes flags of the log, which concern us not.
        if ring.queue.is_some() && ring.addresses != Some(rings) {
            return violation(format!("queue {queue} is running"));
        }
        ring.addresses = Some(rings);
        Ok(())
    }

    /// Starts a queue, or gives one that runs another eventfd.
    fn start(&mut self, queue: u32, kick: Option<OwnedFd>) -> Result<(), Violation> {
        let event_idx = self.features & feature::EVENT_IDX != 0;
        let (index, _) = self.ring(queue)?;
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return violation(format!("there is no queue {queue}"));
        };
        if kick.is_none() {
            return violation(format!("queue {queue} is to be polled for ever"));
        }
        ring.kick = kick;
        ring.kicks = ring.kicks.wrapping_add(1);
        if ring.queue.is_some() {
            return Ok(());
        }
        let found = ring
            .addresses
            .filter(|_| ring.size > 0)
            .and_then(|rings| Queue::new(&self.memory, ring.size, &rings, ring.base, event_idx));
        let Some(mut started) = found else {
            return violation(format!("queue {queue} has no rings where memory is"));
        };
        let region = self.region.as_ref();
        ring.inflight = region.and_then(|region| region.queue(index, ring.size));
        if let Some(inflight) = &mut ring.inflight {
            let used = started.used_index();
            let Ok(heads) = inflight.recover(used) else {
                return violation(format!(
                    "queue {queue} has an inflight region of another queue"
                ));
            };
            if !heads.is_empty() {
                tracing::info!(
                    queue,
                    requests = heads.len(),
                    "doing again what was not answered"
                );
            }
            // What was taken is either answered or in the region, whatever the front end thinks.
            let taken = u16::try_from(heads.len()).unwrap_or_default();
            started.set_next_available(used.wrapping_add(taken));
            ring.again = heads.into();
        }
        ring.queue = Some(started);
        Ok(())
    }

    /// Tells the front end to read the configuration again, if it gave us a way to.
    pub(super) fn announce_config(&self) {
        let Some(channel) = &self.channel else {
            return;
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(e) = send(channel, &config_change(), flags) {
            tracing::warn!(error = %e, "the front end was not told of the new size");
        }
    }
}

fn get_inflight(info: InflightInfo, header: &Header) -> Result<Reply, Violation> {
    let fits =
        (1..=QUEUES_MAX).contains(&info.queues) && (1..=QUEUE_SIZE_MAX).contains(&info.queue_size);
    if !fits {
        return violation(format!("no inflight region is made for {info:?}"));
    }
    let (made, fd) = inflight::create(info.queues, info.queue_size)
        .map_err(|e| Violation(format!("no inflight region can be made: {e}")))?;
    // As long as the request was: its padding is counted by some.
    let mut bytes = made.to_bytes().to_vec();
    bytes.truncate(header.size_bytes as usize);
    Ok(Reply::WithFd(bytes, fd))
}

/// Files and block devices are always ready, and writing to them can take any time. What is left
/// (eventfds, and pipes where somebody has none) must not hold us up when it is full.
fn check_eventfd(fd: &OwnedFd) -> Result<(), Violation> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Violation(format!("an eventfd: {e}")))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind.is_file() || kind.is_dir() || kind.is_block_device() {
        return violation(format!("{kind:?} is given as an eventfd"));
    }
    rustix::io::ioctl_fionbio(fd, true).map_err(|e| Violation(format!("an eventfd: {e}")))
}

fn check_subset(chosen: u64, offered: u64) -> Result<(), Violation> {
    if chosen & !offered != 0 {
        let extra = chosen & !offered;
        return violation(format!("features {extra:#x} were not offered"));
    }
    Ok(())
}
