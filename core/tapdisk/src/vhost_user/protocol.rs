//! vhost-user messages: bytes and descriptors to requests, replies to bytes.
//!
//! ```text
//! u32 request   u32 flags   u32 size   size bytes of payload      little endian
//! ```
//! A message is received in two steps, its header and its payload, never a byte more than it has,
//! so that descriptors (which ride on some byte of it) cannot be taken for another message's.

use super::InflightInfo;
use super::memory::Region;
use std::fmt;
use std::os::fd::OwnedFd;

/// Length of a header.
pub const HEADER_BYTES: usize = 12;

/// Longest payload taken; the longest we know is a memory table of eight regions (264 bytes) or a
/// piece of configuration (268 bytes).
pub const PAYLOAD_BYTES_MAX: usize = 512;

/// Most descriptors with one message, one for each region of a memory table.
pub const FDS_MAX: usize = 8;

/// Version in the lower two bits of the flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// In a kick, call or error message: there is no descriptor.
const NO_FD: u64 = 1 << 8;
const INDEX_MASK: u64 = 0xff;

/// Numbers of requests.
pub(super) mod number {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
}

/// From us to the front end, on the channel it gave us: read the configuration again.
const BACKEND_CONFIG_CHANGE: u32 = 2;

/// Bits of the protocol features.
pub(super) mod protocol_feature {
    pub(crate) const MQ: u64 = 1 << 0;
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    pub(crate) const CONFIG: u64 = 1 << 9;
    pub(crate) const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub(crate) const RESET_DEVICE: u64 = 1 << 13;
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub(crate) const ALL: u64 =
        MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS;
}

/// A message that makes no sense, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

pub(super) fn violation<T>(text: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(text.into()))
}

/// The first twelve bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What is asked.
    pub number: u32,
    /// Version and what kind of reply is wanted.
    pub flags: u32,
    /// Bytes that follow.
    pub size_bytes: u32,
}

impl Header {
    /// Splits a header.
    ///
    /// # Errors
    /// Another version, a reply, a payload longer than any we know.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Violation> {
        let mut fields = Fields(bytes);
        let (number, flags, size_bytes) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if flags & VERSION_MASK != VERSION {
            return violation(format!(
                "message {number} has flags {flags:#x}: not version 1"
            ));
        }
        if flags & FLAG_REPLY != 0 {
            return violation(format!("message {number} is a reply to nothing"));
        }
        if size_bytes as usize > PAYLOAD_BYTES_MAX {
            return violation(format!(
                "message {number} has {size_bytes} bytes of payload"
            ));
        }
        Ok(Self {
            number,
            flags,
            size_bytes,
        })
    }

    /// Whether the front end waits for an acknowledgement, if that was negotiated.
    pub fn wants_ack(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The reply to this message as it travels.
    pub(super) fn reply(&self, payload: &[u8]) -> Vec<u8> {
        message(self.number, VERSION | FLAG_REPLY, payload)
    }
}

/// What we send unasked when the size changed.
pub(super) fn config_change() -> Vec<u8> {
    message(BACKEND_CONFIG_CHANGE, VERSION, &[])
}

fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size_bytes = u32::try_from(payload.len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER_BYTES.saturating_add(payload.len()));
    for field in [number, flags, size_bytes] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// Where the rings of a queue lie, as addresses of the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub table: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub available: u64,
}

/// What a message asks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the protocol's document")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<Region>),
    SetVringNum { queue: u32, size: u32 },
    SetVringAddr { queue: u32, rings: RingAddresses },
    SetVringBase { queue: u32, base: u32 },
    GetVringBase { queue: u32 },
    SetVringKick { queue: u32 },
    SetVringCall { queue: u32 },
    SetVringErr { queue: u32 },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { queue: u32, enable: bool },
    SetBackendReqFd,
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, bytes: Vec<u8> },
    GetInflightFd(InflightInfo),
    SetInflightFd(InflightInfo),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(Region),
    RemMemReg(Region),
    Unknown,
}

/// A message with all that belongs to it.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What it asks.
    pub request: Request,
    /// Descriptors, as many as the request has.
    pub fds: Vec<OwnedFd>,
}

impl Request {
    /// Reads a payload that came with so many descriptors.
    ///
    /// # Errors
    /// A payload too short or too long for the request, descriptors where none belong or none
    /// where some do.
    pub fn parse(header: &Header, payload: &[u8], fds: usize) -> Result<Self, Violation> {
        let mut fields = Fields(payload);
        let (request, takes_fds) = Self::read(header, &mut fields)?;
        // The structure with the inflight region's description ends in padding that some count.
        let padded = matches!(request, Self::GetInflightFd(_) | Self::SetInflightFd(_));
        let left = fields.0.len();
        if left > 0 && !(padded && left <= 4) && request != Self::Unknown {
            let number = header.number;
            return violation(format!("message {number} has {left} bytes too many"));
        }
        // A front end may send along the region's descriptor that is to be forgotten.
        let may = matches!(request, Self::RemMemReg(_)) && fds <= 1;
        if fds != takes_fds && !may && request != Self::Unknown {
            let number = header.number;
            return violation(format!(
                "message {number} came with {fds} descriptors, not {takes_fds}"
            ));
        }
        Ok(request)
    }

    /// The request, and how many descriptors belong to it.
    fn read(header: &Header, fields: &mut Fields<'_>) -> Result<(Self, usize), Violation> {
        let plain = match header.number {
            number::GET_FEATURES => Self::GetFeatures,
            number::SET_FEATURES => Self::SetFeatures(fields.u64()?),
            number::SET_OWNER => Self::SetOwner,
            number::RESET_OWNER => Self::ResetOwner,
            number::GET_PROTOCOL_FEATURES => Self::GetProtocolFeatures,
            number::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(fields.u64()?),
            number::GET_QUEUE_NUM => Self::GetQueueNum,
            number::RESET_DEVICE => Self::ResetDevice,
            number::GET_MAX_MEM_SLOTS => Self::GetMaxMemSlots,
            number::GET_CONFIG | number::SET_CONFIG => config(header, fields)?,
            number::SET_BACKEND_REQ_FD => return Ok((Self::SetBackendReqFd, 1)),
            number::SET_MEM_TABLE
            | number::ADD_MEM_REG
            | number::REM_MEM_REG
            | number::GET_INFLIGHT_FD
            | number::SET_INFLIGHT_FD => return shared_memory(header, fields),
            number::SET_VRING_KICK | number::SET_VRING_CALL | number::SET_VRING_ERR => {
                return eventfd(header, fields);
            }
            number::SET_VRING_NUM
            | number::SET_VRING_ADDR
            | number::SET_VRING_BASE
            | number::GET_VRING_BASE
            | number::SET_VRING_ENABLE => ring(header, fields)?,
            _ => Self::Unknown,
        };
        Ok((plain, 0))
    }
}

fn ring(header: &Header, fields: &mut Fields<'_>) -> Result<Request, Violation> {
    let (queue, value) = (fields.u32()?, fields.u32()?);
    Ok(match header.number {
        number::SET_VRING_NUM => Request::SetVringNum { queue, size: value },
        number::SET_VRING_BASE => Request::SetVringBase { queue, base: value },
        number::GET_VRING_BASE => Request::GetVringBase { queue },
        number::SET_VRING_ENABLE => Request::SetVringEnable {
            queue,
            enable: value != 0,
        },
        _ => {
            // `value` are flags that concern the log, which we do not offer.
            let rings = RingAddresses {
                table: fields.u64()?,
                used: fields.u64()?,
                available: fields.u64()?,
            };
            let _log = fields.u64()?;
            Request::SetVringAddr { queue, rings }
        }
    })
}

fn eventfd(header: &Header, fields: &mut Fields<'_>) -> Result<(Request, usize), Violation> {
    let value = fields.u64()?;
    let queue = (value & INDEX_MASK) as u32;
    let fds = usize::from(value & NO_FD == 0);
    let request = match header.number {
        number::SET_VRING_KICK => Request::SetVringKick { queue },
        number::SET_VRING_CALL => Request::SetVringCall { queue },
        _ => Request::SetVringErr { queue },
    };
    Ok((request, fds))
}

fn shared_memory(header: &Header, fields: &mut Fields<'_>) -> Result<(Request, usize), Violation> {
    Ok(match header.number {
        number::SET_MEM_TABLE => {
            let (count, _padding) = (fields.u32()? as usize, fields.u32()?);
            if count > FDS_MAX {
                return violation(format!("a memory table of {count} regions"));
            }
            let regions: Result<Vec<Region>, Violation> =
                (0..count).map(|_| fields.region()).collect();
            (Request::SetMemTable(regions?), count)
        }
        number::ADD_MEM_REG => {
            let _padding = fields.u64()?;
            (Request::AddMemReg(fields.region()?), 1)
        }
        number::REM_MEM_REG => {
            let _padding = fields.u64()?;
            (Request::RemMemReg(fields.region()?), 0)
        }
        _ => {
            let info = InflightInfo {
                size_bytes: fields.u64()?,
                offset: fields.u64()?,
                queues: fields.u16()?,
                queue_size: fields.u16()?,
            };
            match header.number {
                number::GET_INFLIGHT_FD => (Request::GetInflightFd(info), 0),
                _ => (Request::SetInflightFd(info), 1),
            }
        }
    })
}

fn config(header: &Header, fields: &mut Fields<'_>) -> Result<Request, Violation> {
    let (offset, size, flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let bytes = std::mem::take(&mut fields.0);
    if bytes.len() != size as usize {
        let there = bytes.len();
        return violation(format!(
            "{size} bytes of configuration announced, {there} there"
        ));
    }
    Ok(match header.number {
        number::GET_CONFIG => Request::GetConfig {
            offset,
            size,
            flags,
        },
        _ => Request::SetConfig {
            offset,
            bytes: bytes.to_vec(),
        },
    })
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return violation(format!("a payload ends {N} bytes too early"));
        };
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, Violation> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.take().map(u64::from_le_bytes)
    }

    fn region(&mut self) -> Result<Region, Violation> {
        Ok(Region {
            guest_address: self.u64()?,
            size_bytes: self.u64()?,
            front_address: self.u64()?,
            file_offset: self.u64()?,
        })
    }
}

/// A header, and the message it belongs to or what is wrong with that.
pub type Arrived = (Header, Result<Message, Violation>);

/// Puts messages together from whatever pieces they come in.
#[derive(Debug)]
pub struct Receiver {
    bytes: Box<[u8; HEADER_BYTES + PAYLOAD_BYTES_MAX]>,
    filled: usize,
    fds: Vec<OwnedFd>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            bytes: Box::new([0; HEADER_BYTES + PAYLOAD_BYTES_MAX]),
            filled: 0,
            fds: Vec::new(),
        }
    }
}

impl Receiver {
    /// Where the next bytes go: the rest of the header, or the rest of the payload.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn receive_into(&mut self) -> Result<&mut [u8], Violation> {
        let end = match self.header()? {
            None => HEADER_BYTES,
            Some(header) => HEADER_BYTES.saturating_add(header.size_bytes as usize),
        };
        Ok(self.bytes.get_mut(self.filled..end).unwrap_or_default())
    }

    /// Tells that `count` bytes were put there, and the descriptors that came with them.
    ///
    /// # Errors
    /// More descriptors than any message has.
    pub fn received(
        &mut self,
        count: usize,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), Violation> {
        self.filled = self.filled.saturating_add(count).min(self.bytes.len());
        self.fds.extend(fds);
        if self.fds.len() > FDS_MAX {
            let count = self.fds.len();
            return violation(format!("a message came with {count} descriptors"));
        }
        Ok(())
    }

    /// The message, once all of it is there.
    ///
    /// # Errors
    /// As [`Header::parse`]; a payload that makes no sense is a message with an error, as its
    /// header tells whether the front end waits to hear of it.
    pub fn take(&mut self) -> Result<Option<Arrived>, Violation> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let end = HEADER_BYTES.saturating_add(header.size_bytes as usize);
        if self.filled < end {
            return Ok(None);
        }
        let payload = self.bytes.get(HEADER_BYTES..end).unwrap_or_default();
        let fds = std::mem::take(&mut self.fds);
        let request = Request::parse(&header, payload, fds.len());
        self.filled = 0;
        let message = request.map(|request| Message {
            header,
            request,
            fds,
        });
        Ok(Some((header, message)))
    }

    fn header(&self) -> Result<Option<Header>, Violation> {
        match self.bytes.first_chunk() {
            Some(bytes) if self.filled >= HEADER_BYTES => Header::parse(bytes).map(Some),
            _ => Ok(None),
        }
    }
}
