//! What all tests use: images in memory, an engine with a disk of its own, requests one by one.

use crate::engine::{
    Config, Done, Engine, Error, Finished, LayerImage, LayerSpec, LiveOp, Request, Ticket,
};
use block::{BlockIo, Buffer, Completion, FaultDisk, FileId, RamDisk, SimDisk, SparseBytes, Wait};
use datapath::protocol::{Access, Format};
use std::io;
use uuid::Uuid;
use vhd_rs::{Content, Image, NewImage, OpenOptions, ParentLink, ReadAt, Timestamp};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;

/// The id of the `n`th image of a test.
pub fn uuid(n: u32) -> Uuid {
    Uuid::from_u128(0xA000_0000 + u128::from(n))
}

/// The bytes of a new image, as they are in a file.
pub fn new_image(n: u32, virtual_bytes: u64, content: Content) -> SparseBytes {
    let image = NewImage {
        uuid: uuid(n),
        created: Timestamp::from_unix_s(1_700_000_000),
        virtual_bytes,
        resize_max_bytes: virtual_bytes * 4,
        content,
        extent: vhd_rs::Extent::Grows,
        container_bytes: 0,
    };
    let mut bytes = Vec::new();
    image
        .plan()
        .expect("a plan")
        .apply(&mut bytes)
        .expect("it applies to memory");
    SparseBytes::from(bytes.as_slice())
}

/// An empty disk without a parent.
pub fn dynamic(n: u32, virtual_bytes: u64) -> SparseBytes {
    new_image(n, virtual_bytes, Content::Dynamic)
}

/// A child of image `parent`; of a raw file if that is `None`.
pub fn child(n: u32, parent: Option<u32>, virtual_bytes: u64) -> SparseBytes {
    let link = ParentLink {
        path: parent.map_or("base.raw".into(), |p| format!("{p}.vhd")),
        uuid: parent.map_or(Uuid::nil(), uuid),
        modified: Timestamp::from_unix_s(1_700_000_000),
    };
    new_image(n, virtual_bytes, Content::Differencing(link))
}

/// A disk in memory whose files can be looked at without an operation.
pub trait Peek: BlockIo {
    /// What the file holds now.
    fn peek(&self, file: FileId) -> &SparseBytes;
}

impl Peek for RamDisk {
    fn peek(&self, file: FileId) -> &SparseBytes {
        self.file(file).expect("a file of this disk")
    }
}

impl Peek for SimDisk {
    fn peek(&self, file: FileId) -> &SparseBytes {
        self.live(file).expect("a file of this disk")
    }
}

impl<D: Peek> Peek for FaultDisk<D> {
    fn peek(&self, file: FileId) -> &SparseBytes {
        self.inner().peek(file)
    }
}

/// A file in memory as the format library reads it.
struct Medium<'a>(&'a SparseBytes);

impl ReadAt for Medium<'_> {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.size_bytes())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inside = self.0.read(offset, buffer);
        if inside < buffer.len() {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }
}

/// Reads what one layer is.
///
/// # Errors
/// When it is no sound image.
pub fn load(
    io: &impl Peek,
    (file, format): (FileId, Format),
    access: vhd_rs::Access,
) -> Result<LayerSpec, vhd_rs::Error> {
    let content = io.peek(file);
    let image = match format {
        Format::Raw => LayerImage::Raw,
        Format::Vhd => {
            let options = OpenOptions {
                extent: vhd_rs::Extent::Grows,
                access,
            };
            LayerImage::Vhd(Box::new(Image::open(&Medium(content), options)?))
        }
    };
    Ok(LayerSpec {
        file,
        file_bytes: content.size_bytes(),
        image,
    })
}

/// Reads the layers of a chain, leaf first.
///
/// # Errors
/// When one of them is no sound image.
pub fn load_chain(
    io: &impl Peek,
    files: &[(FileId, Format)],
    access: Access,
) -> Result<Vec<LayerSpec>, vhd_rs::Error> {
    let layer = |(depth, layer): (usize, &(FileId, Format))| {
        let writable = depth == 0 && access == Access::ReadWrite;
        let access = if writable {
            vhd_rs::Access::ReadWrite
        } else {
            vhd_rs::Access::ReadOnly
        };
        load(io, *layer, access)
    };
    files.iter().enumerate().map(layer).collect()
}

/// An engine with a disk of its own.
#[derive(Debug)]
pub struct Rig<I> {
    /// The disk.
    pub io: I,
    /// The engine.
    pub engine: Engine,
    /// Finished and not yet asked for.
    pub finished: Vec<Finished>,
    scratch: Vec<Completion>,
    last_ticket: u64,
}

/// Polls without any result after which a test gives up: nothing is that long.
const POLLS_MAX: usize = 100_000;

impl<I: Peek> Rig<I> {
    /// Opens a chain for writing, leaf first.
    pub fn open(io: I, files: &[(FileId, Format)]) -> Self {
        let layers = load_chain(&io, files, Access::ReadWrite).expect("the images open");
        Self::with_layers(io, layers, Access::ReadWrite).expect("the chain opens")
    }
}

impl<I: BlockIo> Rig<I> {
    /// Opens these layers, leaf first.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn with_layers(io: I, layers: Vec<LayerSpec>, access: Access) -> Result<Self, Error> {
        let config = Config {
            tag: 3,
            access,
            write_through: false,
        };
        let engine = Engine::open(config, layers)?;
        Ok(Self {
            io,
            engine,
            finished: Vec::new(),
            scratch: Vec::new(),
            last_ticket: 0,
        })
    }

    /// Hands over a request.
    pub fn submit(&mut self, request: Request) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.engine.submit(ticket, request);
        ticket
    }

    /// Hands over a live operation.
    pub fn start(&mut self, op: LiveOp) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.engine.start(ticket, op);
        ticket
    }

    /// One turn of the loop; returns whether anything is left to be done.
    pub fn step(&mut self) -> bool {
        self.engine
            .drive(&mut self.io, Wait::Forever, &mut self.scratch)
            .expect("the carrier");
        while let Some(finished) = self.engine.next_finished() {
            self.finished.push(finished);
        }
        self.io.in_flight() > 0
    }

    /// The answer to a request, once.
    pub fn take(&mut self, ticket: Ticket) -> Option<Result<Done, Error>> {
        let index = self
            .finished
            .iter()
            .position(|finished| finished.ticket == ticket)?;
        Some(self.finished.remove(index).result)
    }

    /// Turns until the request is finished.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Done, Error> {
        for _ in 0..POLLS_MAX {
            self.step();
            if let Some(result) = self.take(ticket) {
                return result;
            }
        }
        panic!("{ticket:?} does not finish: {:?}", self.engine);
    }

    /// One request, from its beginning to its end.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn run(&mut self, request: Request) -> Result<Done, Error> {
        let ticket = self.submit(request);
        self.wait(ticket)
    }

    /// One live operation, from its beginning to its end.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn run_live(&mut self, op: LiveOp) -> Result<Done, Error> {
        let ticket = self.start(op);
        self.wait(ticket)
    }

    /// Writes.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let data = Buffer::copy_of(data);
        self.run(Request::Write {
            offset,
            data,
            fua: false,
        })
        .map(|_| ())
    }

    /// Flushes.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run(Request::Flush).map(|_| ())
    }

    /// Reads; at most [`crate::engine::REQUEST_BYTES_MAX`].
    ///
    /// # Errors
    /// Those of the engine.
    pub fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        let len_bytes = u32::try_from(len).expect("a short read");
        match self.run(Request::Read { offset, len_bytes })? {
            Done::Data(buffer) => {
                let bytes = buffer.as_slice().to_vec();
                self.engine.give_buffer(buffer);
                Ok(bytes)
            }
            other => panic!("a read finished with {other:?}"),
        }
    }

    /// Closes the disk, which must work, and gives back what it stood on.
    pub fn close(mut self) -> I {
        self.run_live(LiveOp::Close).expect("the disk closes");
        self.io
    }
}

/// A memory disk with one dynamic image of this size.
pub fn ram_with_dynamic(virtual_bytes: u64) -> (RamDisk, [(FileId, Format); 1]) {
    let mut ram = RamDisk::new();
    let file = ram.add_file(dynamic(1, virtual_bytes));
    (ram, [(file, Format::Vhd)])
}
