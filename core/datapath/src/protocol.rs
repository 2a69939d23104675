//! The messages.

mod copy;
mod disk;

pub use copy::{CopyPlan, CopyProgress, CopyScope, CopyState, MirrorState};
pub use disk::{
    Cache, DiskLatencies, DiskSettings, DiskStats, Limit, Limits, LogState, OnError, Paused, Policy,
};

use serde::{Deserialize, Serialize};
use units::{DpId, RequestId};
use uuid::Uuid;

/// Name and version that both sides must agree on in the first frame.
pub const PROTOCOL: &str = "xylem-tapdisk/0";

/// Largest frame either side accepts.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Most descriptors one frame may carry: two chains of the longest kind, for a copy.
pub const FRAME_FDS_MAX: usize = 128;

/// Longest wait in milliseconds that a caller can ask for; shorter than any call's deadline.
pub const WAIT_MS_MAX: u32 = 30_000;

/// How the bytes of one layer are laid out. Recorded by the core, never probed for: a guest can
/// write a VHD footer into a raw disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The container is the disk.
    Raw,
    /// A VHD of any type.
    Vhd,
}

/// Whether a disk takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// How a container ends: a file grows and its footer sits at the end of data, a reserved container
/// (a logical volume) has its footer in its last sector and never changes size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// Grows with its content.
    Grows,
    /// Fixed size; the footer goes to the last sector.
    Reserved,
}

/// What `image-query` found in one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The VHD's own uuid.
    pub uuid: Uuid,
    /// Uuid of the parent image; `None` for fixed and dynamic images.
    pub parent_uuid: Option<Uuid>,
    /// Name of the parent as the locators give it (a relative path).
    pub parent_name: Option<String>,
    /// The size a guest sees.
    pub virtual_bytes: u64,
    /// Largest size a fast resize can reach.
    pub resize_max_bytes: u64,
    /// Allocated blocks of 2 MiB (all of them for a fixed image).
    pub allocated_blocks: u32,
    /// The hidden flag XenServer sets on inner nodes.
    pub hidden: bool,
    /// Whether the file was closed cleanly (its primary footer is there and equal to the copy).
    pub clean: bool,
}

/// Whether clients of an export have to use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsPolicy {
    /// They may.
    Allow,
    /// They must: nothing else is answered before.
    Require,
}

/// What an export needs for TLS 1.2 and 1.3, with X.509 certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// Whether it is used.
    pub policy: TlsPolicy,
    /// The server's certificate and those between it and its root, in this order, as PEM.
    pub certificates_pem: String,
    /// Its private key, as PEM.
    pub key_pem: Secret,
    /// Whoever signed the certificates of the clients that are let in, as PEM; `None` asks clients
    /// for no certificate.
    pub client_ca_pem: Option<String>,
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The parent of an image about to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRef {
    /// Container name, which becomes `./name` in the locators.
    pub name: String,
    /// The parent image's uuid; nil for a raw parent.
    pub uuid: Uuid,
    /// The parent's modification time, seconds since the Unix epoch.
    pub mtime_unix_s: i64,
}

/// What the daemon asks. The comment names the descriptors that ride with the frame, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// First frame of a connection.
    Hello {
        /// [`PROTOCOL`].
        protocol: String,
    },
    /// Opens a chain (descriptors: leaf first, base last) without serving it. Idempotent: the same
    /// disk with the same uuids again is a success and the new descriptors are closed.
    Open {
        /// The datapath's name.
        disk: DpId,
        /// Format of each layer, leaf first.
        layers: Vec<Format>,
        /// How the leaf ends.
        extent: Extent,
        /// Whether the leaf takes writes.
        access: Access,
        /// How it behaves; a disk that is open already takes them over.
        #[serde(default)]
        settings: DiskSettings,
    },
    /// Serves an open disk over NBD on a listening unix socket (one descriptor). Idempotent: a
    /// disk that is served already takes the new listener in place of the old one, and clients
    /// that are connected stay connected.
    Serve {
        /// The datapath's name.
        disk: DpId,
        /// The only export name answered to, and the default one.
        export: String,
        /// TLS for clients that connect from now on; `None` serves in the clear.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<Box<Tls>>,
    },
    /// Serves an open disk as a vhost-user block device on a listening unix socket (one
    /// descriptor), beside NBD or without it. One front end at a time; one that comes while another
    /// is connected waits. Idempotent as `Serve` is.
    ServeVhostUser {
        /// The datapath's name.
        disk: DpId,
        /// What the guest sees as the disk's serial number; at most 20 bytes.
        serial: String,
    },
    /// Stops serving: no new connections, the requests in flight are finished, clients are closed.
    Unserve {
        /// The datapath's name.
        disk: DpId,
    },
    /// Stops serving, flushes, writes footers and closes. A disk that is not open is a success. After
    /// an error the disk is still open if `List` shows it, and closing can be tried again.
    Close {
        /// The datapath's name.
        disk: DpId,
    },
    /// Begins to mark what is changed in a log of changed blocks (one descriptor, not opened with
    /// `O_DIRECT`): whatever is changed after the answer is in it, also after a power cut. The log's
    /// `consistent` flag is cleared first and comes back as it was when the log is done with.
    /// Idempotent; `Busy` with another log. A log that cannot be written later is broken, which
    /// `List` tells, and the disk goes on.
    CbtStart {
        /// The datapath's name.
        disk: DpId,
    },
    /// Ends that. A disk without a log is a success.
    CbtStop {
        /// The datapath's name.
        disk: DpId,
    },
    /// Puts a new leaf (one descriptor, an empty differencing VHD whose parent is the present
    /// leaf) on top of a live disk: drains writes, flushes and seals the old leaf, switches.
    Snapshot {
        /// The datapath's name.
        disk: DpId,
        /// Uuid of the new leaf; a disk whose leaf has it already answers success.
        leaf: Uuid,
        /// Whether a second descriptor comes with it, of the log that changes are marked in from
        /// now on; the log before, if any, is done with. Else that one goes on.
        #[serde(default)]
        log: bool,
    },
    /// Holds back new requests of these disks and drains those in flight, all at one instant. It
    /// ends with the control connection it came by, so that a daemon that dies holds no guest.
    Freeze {
        /// The datapaths.
        disks: Vec<DpId>,
    },
    /// Undoes `Freeze`.
    Thaw {
        /// The datapaths.
        disks: Vec<DpId>,
    },
    /// Takes over a live disk's new size after the leaf's `image-resize` (both in one step here:
    /// resizes the leaf's metadata and the served size).
    Resize {
        /// The datapath's name.
        disk: DpId,
        /// New size in bytes; at least the present one.
        virtual_bytes: u64,
    },
    /// Every disk with its state and statistics.
    List,
    /// Latencies of one disk.
    Stats {
        /// The datapath's name.
        disk: DpId,
    },
    /// Changes a disk's limits while it is in use; requests in flight are not affected.
    SetLimits {
        /// The datapath's name.
        disk: DpId,
        /// All of its limits from now on.
        limits: Limits,
    },
    /// Changes what happens when the storage refuses a request. A disk that is paused for what is
    /// now to be reported goes on, and the requests that were kept fail.
    SetPolicy {
        /// The datapath's name.
        disk: DpId,
        /// The policy from now on.
        policy: Policy,
    },
    /// Ends a disk's pause: what was kept is tried again. One that is not paused is a success.
    Resume {
        /// The datapath's name.
        disk: DpId,
    },
    /// Ends the process once no disk is open; refused with `busy` before.
    Exit,
    /// Writes a new VHD into an empty container (one descriptor). Idempotent: a container that holds
    /// the image with this uuid already is a success, with another image `Busy` if it grows.
    ImageCreate {
        /// Its uuid.
        uuid: Uuid,
        /// Size a guest sees; rounded up to 2 MiB.
        virtual_bytes: u64,
        /// Size up to which metadata is laid out, so that a later resize is fast.
        resize_max_bytes: u64,
        /// `None`: dynamic. `Some`: differencing.
        parent: Option<ParentRef>,
        /// How the container ends.
        extent: Extent,
    },
    /// Reads an image's description (one descriptor).
    ImageQuery {
        /// How the container ends.
        extent: Extent,
    },
    /// Grows an image that nobody has open (one descriptor).
    ImageResize {
        /// New size in bytes; at least the present one.
        virtual_bytes: u64,
        /// How the container ends.
        extent: Extent,
    },
    /// Copies a chain into another that no disk has: the whole of it, or one layer into the layer
    /// below it. Descriptors: the source, leaf first, then the target, leaf first. The source is
    /// only read, and nobody writes it. It goes on without the connection. Idempotent: the same copy
    /// of the same files again is a success, also when it has ended well; one that ended badly
    /// begins anew. Coalescing may be cut off anywhere: whoever reads through the layer that goes
    /// sees no difference, and the same again finishes it.
    CopyStart {
        /// Its name, of the caller's choosing.
        copy: DpId,
        /// Format of each layer of the source, leaf first.
        source: Vec<Format>,
        /// How the containers end.
        extent: Extent,
        /// What it is to do.
        plan: CopyPlan,
    },
    /// Waits until a copy has ended, at most so long, and says how far it is. It is over when the
    /// state says `ended`; that it failed is in the state too.
    CopyWait {
        /// Its name.
        copy: DpId,
        /// At most [`WAIT_MS_MAX`].
        wait_ms: u32,
    },
    /// Ends a copy and forgets it; one that is not known is a success.
    CopyStop {
        /// Its name.
        copy: DpId,
    },
    /// Begins to write everything that a disk is written to a second chain as well, and to copy what
    /// it holds. Descriptors: the target, leaf first, which has the disk's size or grows to it.
    /// [`CopyScope::Layer`] takes the disk's leaf into the layer below it, whose only child it is.
    /// Idempotent as `CopyStart` is. While it runs `Snapshot`, `Resize` and `Relink` are refused
    /// with `busy`; `Close` stops it first. `unsupported` for a disk that keeps a log of changed
    /// blocks, which stays with its engine; one that begins a log later cannot be switched until the
    /// log is stopped.
    MirrorStart {
        /// The datapath's name.
        disk: DpId,
        /// How the target's containers end.
        extent: Extent,
        /// What it is to do; `above` is zero.
        plan: CopyPlan,
    },
    /// Waits until a disk and its mirror are in sync or the mirror has failed, at most so long, and
    /// says how far it is.
    MirrorWait {
        /// The datapath's name.
        disk: DpId,
        /// At most [`WAIT_MS_MAX`].
        wait_ms: u32,
    },
    /// To be called before recording that the target is the disk: from now on, until the switch or
    /// the stop, either is right after a crash. If the target fails in between no flush is answered
    /// before the caller has taken its record back and stops the mirror. `busy` unless in sync, `io`
    /// when the mirror has failed. Idempotent.
    MirrorPrepare {
        /// The datapath's name.
        disk: DpId,
    },
    /// Puts the target in the disk's place; answered when that is done and all is durable there.
    /// No request waits for it. A disk that was switched already is a success. `busy` unless in
    /// sync, `io` when the mirror has failed or both differ.
    MirrorSwitch {
        /// The datapath's name.
        disk: DpId,
        /// Whether all bytes of both are compared before; may take long.
        verify: bool,
    },
    /// Closes the target and goes on without it. A disk without a mirror is a success, and so is one
    /// that was switched: nothing is undone.
    MirrorStop {
        /// The datapath's name.
        disk: DpId,
    },
    /// Takes a layer out of the chain of a disk in use (one descriptor: the layer below it, which
    /// holds all that it held). Nothing waits for it. A disk without the layer is a success.
    Relink {
        /// The datapath's name.
        disk: DpId,
        /// Uuid of the layer that goes.
        gone: Uuid,
        /// Format of the layer below it.
        into: Format,
        /// How the leaf is to name that one: given exactly when the leaf stands on what goes and the
        /// disk takes writes. Its path must be as long as the old one.
        parent: Option<ParentRef>,
    },
    /// Makes another image the parent of an image that nobody writes (one descriptor), in one step
    /// if a crash comes. The path must be as long as the old one. Disks that read it go on. The
    /// parent it has already is a success.
    ImageReparent {
        /// The new parent.
        parent: ParentRef,
        /// How the container ends.
        extent: Extent,
    },
    /// Sets or clears the hidden flag of an image that nobody writes (one descriptor).
    ImageHide {
        /// The flag's new value.
        hidden: bool,
        /// How the container ends.
        extent: Extent,
    },
}

impl Request {
    /// The op as it travels, for messages and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Open { .. } => "open",
            Self::Serve { .. } => "serve",
            Self::ServeVhostUser { .. } => "serve-vhost-user",
            Self::Unserve { .. } => "unserve",
            Self::Close { .. } => "close",
            Self::CbtStart { .. } => "cbt-start",
            Self::CbtStop { .. } => "cbt-stop",
            Self::Snapshot { .. } => "snapshot",
            Self::Freeze { .. } => "freeze",
            Self::Thaw { .. } => "thaw",
            Self::Resize { .. } => "resize",
            Self::List => "list",
            Self::Stats { .. } => "stats",
            Self::SetLimits { .. } => "set-limits",
            Self::SetPolicy { .. } => "set-policy",
            Self::Resume { .. } => "resume",
            Self::Exit => "exit",
            Self::ImageCreate { .. } => "image-create",
            Self::ImageQuery { .. } => "image-query",
            Self::ImageResize { .. } => "image-resize",
            Self::ImageHide { .. } => "image-hide",
            Self::ImageReparent { .. } => "image-reparent",
            Self::CopyStart { .. } => "copy-start",
            Self::CopyWait { .. } => "copy-wait",
            Self::CopyStop { .. } => "copy-stop",
            Self::MirrorStart { .. } => "mirror-start",
            Self::MirrorWait { .. } => "mirror-wait",
            Self::MirrorPrepare { .. } => "mirror-prepare",
            Self::MirrorSwitch { .. } => "mirror-switch",
            Self::MirrorStop { .. } => "mirror-stop",
            Self::Relink { .. } => "relink",
        }
    }
}

/// What comes back when a request worked. Requests not named here answer [`Reply::Done`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// [`PROTOCOL`].
        protocol: String,
        /// The process id.
        pid: u32,
        /// Version of the binary.
        version: String,
    },
    /// It is done.
    Done,
    /// To `Open`, `Snapshot`, `Resize`, `Relink`, `MirrorStart`, `MirrorWait`, `MirrorSwitch`,
    /// `SetLimits`, `SetPolicy`, `Resume`, `CbtStart`, `CbtStop`.
    Disk(Box<DiskState>),
    /// To `List`.
    Disks {
        /// In order of their names.
        disks: Vec<DiskState>,
        /// Copies without a guest, in order of their names.
        #[serde(default)]
        copies: Vec<CopyState>,
    },
    /// To `CopyStart`, `CopyWait`.
    Copy(CopyState),
    /// To `Stats`.
    Stats(Box<DiskLatencies>),
    /// To `ImageCreate`, `ImageQuery`, `ImageResize`.
    Image(ImageInfo),
}

/// One open disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskState {
    /// The datapath's name.
    pub disk: DpId,
    /// Uuids of the layers, leaf first; nil for a raw layer.
    pub layers: Vec<Uuid>,
    /// Size a guest sees.
    pub virtual_bytes: u64,
    /// Whether the leaf takes writes.
    pub access: Access,
    /// The export name while it is served.
    pub serving: Option<String>,
    /// Whether it is served over vhost-user.
    #[serde(default)]
    pub vhost_user: bool,
    /// Set once a flush failed: every later write and flush fails, nothing retries and acks.
    pub poisoned: Option<String>,
    /// Counts since it was opened.
    pub stats: DiskStats,
    /// How it behaves.
    #[serde(default)]
    pub settings: DiskSettings,
    /// Set while requests wait for the storage to recover.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// The log of changed blocks in use.
    #[serde(default)]
    pub log: Option<LogState>,
    /// Its mirror, if it has one; a mirror that was switched stays here until the next one.
    #[serde(default)]
    pub mirror: Option<MirrorState>,
}

/// Why a request did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The message is malformed, out of order or of another protocol version.
    Protocol,
    /// No such disk.
    NotFound,
    /// The disk is open with another chain, or the process still has disks.
    Busy,
    /// The image is not a valid VHD; the text says which field and what it held.
    Corrupt,
    /// The chain does not fit together: wrong parent uuid, a loop, too deep.
    Chain,
    /// The image is valid but this cannot be done with it (size, version, type).
    Unsupported,
    /// No space left.
    NoSpace,
    /// The storage answered with an error.
    Io,
    /// The process is gone or did not answer in time. Made by the client only.
    Gone,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("data path: {message}")]
pub struct Error {
    /// What callers branch on.
    pub kind: ErrorKind,
    /// The thing and the number.
    pub message: String,
}

impl Error {
    /// Makes an error.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn gone(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Gone, message)
    }
}

/// A request as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Chosen by the client, returned with the reply.
    pub id: u64,
    /// The client call this belongs to, for the log.
    pub request_id: RequestId,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// A reply as it travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplyFrame {
    /// The request's id.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub result: Outcome,
}

/// Result in a form that reads well on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It worked.
    Ok(Reply),
    /// It did not.
    Error(Error),
}
