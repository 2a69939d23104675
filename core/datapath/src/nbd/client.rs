//! The handle, and the checks before a request goes out.

use super::connection::{Answer, Command, Connection, Ticket};
use super::handshake::handshake;
use super::{Error, ErrorKind, IN_FLIGHT_MAX, REQUEST_BYTES_MAX, wire};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long connecting and greeting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long one request may take before the connection is given up.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// Largest length in 32 bits that every block size divides.
const COMPACT_LENGTH_MAX: u64 = (1 << 32) - (64 << 10);

/// What an export is and can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its size.
    pub size_bytes: u64,
    /// Requests are multiples of this.
    pub minimum_bytes: u32,
    /// No read or write may be larger than this.
    pub request_bytes_max: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether `flush` works.
    pub can_flush: bool,
    /// Whether [`WriteFlags::fua`] works.
    pub can_fua: bool,
    /// Whether `trim` works.
    pub can_trim: bool,
    /// Whether `write_zeroes` works.
    pub can_write_zeroes: bool,
    /// Whether a flush covers the writes of every connection.
    pub multi_conn: bool,
    /// Whether `block_status` works.
    pub block_status: bool,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether one request can be about more than 4 GiB.
    pub extended: bool,
}

impl Info {
    pub(super) fn new(size_bytes: u64, flags: u16) -> Self {
        let has = |flag: u16| flags & wire::EXPORT_HAS_FLAGS != 0 && flags & flag != 0;
        Self {
            size_bytes,
            minimum_bytes: 1,
            request_bytes_max: REQUEST_BYTES_MAX,
            read_only: has(wire::EXPORT_READ_ONLY),
            can_flush: has(wire::EXPORT_SEND_FLUSH),
            can_fua: has(wire::EXPORT_SEND_FUA),
            can_trim: has(wire::EXPORT_SEND_TRIM),
            can_write_zeroes: has(wire::EXPORT_SEND_WRITE_ZEROES),
            multi_conn: has(wire::EXPORT_CAN_MULTI_CONN),
            block_status: false,
            structured: false,
            extended: false,
        }
    }
}

/// How a write is carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable before the call returns.
    pub fua: bool,
    /// Zeroes stay allocated (for `write_zeroes`).
    pub no_hole: bool,
}

/// A stretch of a disk in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// Its length.
    pub length_bytes: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// A connection to one export. Cheap to clone; requests overlap up to [`IN_FLIGHT_MAX`].
///
/// Every call fails with `Gone` once the connection ended or when there is no answer in a minute.
/// All calls are cancel safe for the connection; a dropped write may or may not have happened.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    permits: Arc<Semaphore>,
    info: Arc<Info>,
}

impl Client {
    /// Connects to the unix socket and enters the export.
    ///
    /// # Errors
    /// `NotFound`, `NoExport`, `Protocol`, `Gone`.
    pub async fn connect(socket: &Path, export: &str) -> Result<Self, Error> {
        let greet = async {
            let mut stream = UnixStream::connect(socket).await.map_err(|e| {
                let message = format!("cannot connect to {}: {e}", socket.display());
                Error::new(ErrorKind::NotFound, message)
            })?;
            let agreed = handshake(&mut stream, export).await?;
            Ok(Self {
                connection: Connection::start(stream, agreed.replies),
                permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
                info: Arc::new(agreed.info),
            })
        };
        timeout(CONNECT_DEADLINE, greet).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Gone,
                format!("{} does not greet", socket.display()),
            ))
        })
    }

    /// What the export is and can.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    /// `Invalid` outside the disk or over the largest request; `Io`, `Gone`, `Protocol`.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
        let length = u64::from(length);
        self.check(wire::CMD_READ, offset, length)?;
        let command = Command::new(wire::CMD_READ, 0, offset, length);
        match self.request(command).await? {
            Answer::Data(data) => Ok(data),
            other => Err(mismatch("read", &other)),
        }
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// `ReadOnly`, `Invalid`, `NoSpace`, `Io`, `Gone`, `Protocol`.
    pub async fn write(&self, offset: u64, data: Vec<u8>, flags: WriteFlags) -> Result<(), Error> {
        let length = data.len() as u64;
        self.check(wire::CMD_WRITE, offset, length)?;
        let flags = self.command_flags(flags)? & wire::CMD_FLAG_FUA;
        let command = Command {
            data,
            ..Command::new(wire::CMD_WRITE, flags, offset, length)
        };
        self.done("write", command).await
    }

    /// Makes a range of any length read as zeroes.
    ///
    /// # Errors
    /// As [`Client::write`], and a part may be done then; `Unsupported` when the export cannot.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        self.can(self.info.can_write_zeroes, "write zeroes")?;
        self.check(wire::CMD_WRITE_ZEROES, offset, length)?;
        let flags = self.command_flags(flags)?;
        self.in_pieces(
            "write zeroes",
            wire::CMD_WRITE_ZEROES,
            flags,
            offset,
            length,
        )
        .await
    }

    /// Gives a range's space back where that is possible; its content is undefined afterwards.
    ///
    /// # Errors
    /// As [`Client::write_zeroes`].
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.can(self.info.can_trim, "trim")?;
        self.check(wire::CMD_TRIM, offset, length)?;
        self.in_pieces("trim", wire::CMD_TRIM, 0, offset, length)
            .await
    }

    /// Makes every write that finished before this call durable.
    ///
    /// # Errors
    /// `Unsupported`, `Io`, `Gone`, `Protocol`.
    pub async fn flush(&self) -> Result<(), Error> {
        self.can(self.info.can_flush, "flush")?;
        self.done("flush", Command::new(wire::CMD_FLUSH, 0, 0, 0))
            .await
    }

    /// Describes the range from `offset` on: at least one run, together at most `length` bytes,
    /// often less. Neighbours may be in the same state.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid`, `Io`, `Gone`, `Protocol`.
    pub async fn block_status(&self, offset: u64, length: u64) -> Result<Vec<BlockRun>, Error> {
        self.can(self.info.block_status, "block status")?;
        self.check(wire::CMD_BLOCK_STATUS, offset, length)?;
        // An answer may stop early anyway.
        let length = length.min(self.request_length_max());
        let command = Command::new(wire::CMD_BLOCK_STATUS, 0, offset, length);
        match self.request(command).await? {
            Answer::Runs(runs) => Ok(runs),
            other => Err(mismatch("block status", &other)),
        }
    }

    /// Ends the session in order. Clones fail with `Gone` afterwards.
    ///
    /// # Errors
    /// `Gone` when it had ended already.
    pub async fn disconnect(self) -> Result<(), Error> {
        // All permits: whatever clones have in flight is answered first.
        let all = u32::try_from(IN_FLIGHT_MAX).expect("16 fits");
        let wait = self.permits.acquire_many(all);
        let _permits = timeout(REQUEST_DEADLINE, wait)
            .await
            .map_err(|_| no_answer())?;
        self.connection.disconnect().await
    }

    /// A command without data, as often as the server's headers need for its length.
    async fn in_pieces(
        &self,
        what: &str,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(self.request_length_max());
            self.done(what, Command::new(kind, flags, offset + done, piece))
                .await?;
            done += piece;
        }
        Ok(())
    }

    /// Largest length of a request without data.
    fn request_length_max(&self) -> u64 {
        if self.info.extended {
            u64::MAX
        } else {
            COMPACT_LENGTH_MAX
        }
    }

    async fn done(&self, what: &str, command: Command) -> Result<(), Error> {
        match self.request(command).await? {
            Answer::Done => Ok(()),
            other => Err(mismatch(what, &other)),
        }
    }

    async fn request(&self, command: Command) -> Result<Answer, Error> {
        let permits = Arc::clone(&self.permits);
        let permit = permits
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // The permit travels with the request: a dropped call still counts until it is answered.
        let (ticket, answer) = Ticket::new(permit);
        let exchange = async {
            self.connection.send(command, ticket).await?;
            answer
                .await
                .unwrap_or_else(|_| Err(self.connection.why_gone()))
        };
        match timeout(REQUEST_DEADLINE, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                self.connection.give_up();
                Err(no_answer())
            }
        }
    }

    fn check(&self, command: u16, offset: u64, length: u64) -> Result<(), Error> {
        let info = &self.info;
        let writes = [wire::CMD_WRITE, wire::CMD_WRITE_ZEROES, wire::CMD_TRIM];
        if info.read_only && writes.contains(&command) {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the export takes no writes",
            ));
        }
        let carries_data = [wire::CMD_READ, wire::CMD_WRITE].contains(&command);
        let unit = u64::from(info.minimum_bytes);
        let fits = offset
            .checked_add(length)
            .is_some_and(|end| end <= info.size_bytes);
        let aligned = offset.is_multiple_of(unit) && length.is_multiple_of(unit);
        let too_large = carries_data && length > u64::from(info.request_bytes_max);
        if !fits || !aligned || length == 0 || too_large {
            let message = format!(
                "{length} bytes at {offset} of {}, in units of {unit}, at most {} with data",
                info.size_bytes, info.request_bytes_max
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(())
    }

    fn command_flags(&self, flags: WriteFlags) -> Result<u16, Error> {
        self.can(self.info.can_fua || !flags.fua, "write through (FUA)")?;
        let fua = if flags.fua { wire::CMD_FLAG_FUA } else { 0 };
        Ok(fua
            | if flags.no_hole {
                wire::CMD_FLAG_NO_HOLE
            } else {
                0
            })
    }

    fn can(&self, able: bool, what: &str) -> Result<(), Error> {
        if able {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("the export cannot {what}"),
        ))
    }
}

fn mismatch(what: &str, answer: &Answer) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{what} was answered with {}", answer.name()),
    )
}

fn no_answer() -> Error {
    let seconds = REQUEST_DEADLINE.as_secs();
    Error::new(ErrorKind::Gone, format!("no answer in {seconds} s"))
}
