//! The facts every [`BlockIo`] must satisfy, as one list of checks to be called from a test.
//!
//! Punching holes and allocating may be answered with `Unsupported`; everything else is required.

use crate::{Action, BlockIo, Buffer, Completion, ErrorKind, FileId, Op, Payload, Wait};

/// What a check needs: a disk and a way to make a file on it with some content.
pub trait Bench {
    /// The disk under test.
    type Io: BlockIo;
    /// Makes a disk with one file that holds `content`.
    fn disk_with(&mut self, content: &[u8]) -> (Self::Io, FileId);
}

/// Runs every check.
///
/// # Panics
/// When one fails; that is what it is for.
pub fn run(bench: &mut impl Bench) {
    reads_back_what_was_written(bench);
    read_at_the_end_fails_and_returns_its_buffer(bench);
    write_past_the_end_extends_with_zeros(bench);
    every_operation_completes_once(bench);
    truncate_cuts_and_extends(bench);
    punch_zeroes_without_extending(bench);
    unknown_files_and_absurd_ranges_are_errors(bench);
}

fn op(file: FileId, token: u64, action: Action) -> Op {
    Op {
        token,
        file,
        action,
    }
}

fn run_one(io: &mut impl BlockIo, file: FileId, action: Action) -> Result<Payload, ErrorKind> {
    let mut others = Vec::new();
    let result = io
        .run(op(file, 77, action), &mut others)
        .map_err(|e| e.kind);
    assert!(
        others.is_empty(),
        "a completion of something never submitted: {others:?}"
    );
    result
}

fn write(io: &mut impl BlockIo, file: FileId, offset: u64, bytes: &[u8]) {
    let data = Buffer::copy_of(bytes).share();
    let payload = run_one(io, file, Action::Write { offset, data }).expect("the write works");
    let Payload::Written(data) = payload else {
        panic!("a write gives its data back")
    };
    assert_eq!(data.as_slice(), bytes);
}

fn read(io: &mut impl BlockIo, file: FileId, offset: u64, len: usize) -> Vec<u8> {
    let buffer = Buffer::copy_of(&vec![0xAA; len]);
    let payload = run_one(io, file, Action::Read { offset, buffer }).expect("the read works");
    let Payload::Read(buffer) = payload else {
        panic!("a read gives its buffer back")
    };
    buffer.as_slice().to_vec()
}

fn reads_back_what_was_written(bench: &mut impl Bench) {
    let (mut io, file) = bench.disk_with(&[1; 8192]);
    write(&mut io, file, 4096, &[2; 512]);
    run_one(&mut io, file, Action::Fdatasync).expect("the flush works");
    let bytes = read(&mut io, file, 3584, 1536);
    assert_eq!(
        (bytes[511], bytes[512], bytes[1023], bytes[1024]),
        (1, 2, 2, 1)
    );
}

fn read_at_the_end_fails_and_returns_its_buffer(bench: &mut impl Bench) {
    let (mut io, file) = bench.disk_with(&[1; 4096]);
    for offset in [3584, 4096, 1 << 30] {
        io.submit(op(
            file,
            5,
            Action::Read {
                offset,
                buffer: Buffer::zeroed(1024),
            },
        ));
        let completion = wait_one(&mut io);
        let kind = completion.result.expect_err("past the end").kind;
        assert_eq!(kind, ErrorKind::EndOfFile, "offset {offset}");
        assert!(matches!(completion.payload, Payload::Read(b) if b.len() == 1024));
    }
}

fn write_past_the_end_extends_with_zeros(bench: &mut impl Bench) {
    let (mut io, file) = bench.disk_with(&[1; 512]);
    write(&mut io, file, 8192, &[3; 512]);
    assert_eq!(io.size_bytes(file), Ok(8704));
    let bytes = read(&mut io, file, 0, 8704);
    assert_eq!(
        (bytes[511], bytes[512], bytes[8191], bytes[8192]),
        (1, 0, 0, 3)
    );
}

fn every_operation_completes_once(bench: &mut impl Bench) {
    const OPS: u64 = 100;
    let (mut io, file) = bench.disk_with(&[0; 64 << 10]);
    for token in 0..OPS {
        let action = match token % 3 {
            0 => Action::Write {
                offset: (token % 7) * 4096,
                data: Buffer::copy_of(&[token as u8; 4096]).share(),
            },
            1 => Action::Read {
                offset: (token % 15) * 4096,
                buffer: Buffer::zeroed(4096),
            },
            _ => Action::Fdatasync,
        };
        io.submit(op(file, token, action));
    }
    let mut done = Vec::new();
    while done.len() < OPS as usize {
        let before = done.len();
        io.poll(Wait::Forever, &mut done).expect("poll works");
        assert!(
            done.len() > before,
            "{before} of {OPS} operations completed, then none"
        );
    }
    io.poll(Wait::No, &mut done).expect("poll works");
    let mut tokens: Vec<u64> = done.iter().map(|c| c.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..OPS).collect::<Vec<_>>());
    assert!(done.iter().all(|c| c.result.is_ok()));
    assert_eq!(io.in_flight(), 0);
}

fn truncate_cuts_and_extends(bench: &mut impl Bench) {
    let (mut io, file) = bench.disk_with(&[1; 4096]);
    run_one(&mut io, file, Action::Truncate { size_bytes: 1000 }).expect("truncate works");
    run_one(&mut io, file, Action::Truncate { size_bytes: 2048 }).expect("truncate works");
    assert_eq!(io.size_bytes(file), Ok(2048));
    let bytes = read(&mut io, file, 0, 2048);
    assert_eq!((bytes[999], bytes[1000], bytes[2047]), (1, 0, 0));
}

fn punch_zeroes_without_extending(bench: &mut impl Bench) {
    let (mut io, file) = bench.disk_with(&[1; 8192]);
    let allocated = run_one(
        &mut io,
        file,
        Action::Allocate {
            offset: 0,
            len_bytes: 8192,
        },
    );
    assert!(
        matches!(allocated, Ok(_) | Err(ErrorKind::Unsupported)),
        "{allocated:?}"
    );
    match run_one(
        &mut io,
        file,
        Action::Punch {
            offset: 512,
            len_bytes: 1 << 20,
        },
    ) {
        Ok(_) => {
            assert_eq!(io.size_bytes(file), Ok(8192));
            let bytes = read(&mut io, file, 0, 8192);
            assert_eq!((bytes[511], bytes[512], bytes[8191]), (1, 0, 0));
        }
        Err(kind) => assert_eq!(kind, ErrorKind::Unsupported),
    }
}

fn unknown_files_and_absurd_ranges_are_errors(bench: &mut impl Bench) {
    let (mut io, file) = bench.disk_with(&[1; 512]);
    let unknown = FileId(file.0.wrapping_add(1000));
    assert_eq!(
        run_one(&mut io, unknown, Action::Fdatasync).expect_err("unknown"),
        ErrorKind::NoSuchFile
    );
    assert!(io.size_bytes(unknown).is_err());
    for offset in [u64::MAX, u64::MAX - 100, i64::MAX as u64] {
        let data = Buffer::zeroed(512).share();
        let absurd = run_one(&mut io, file, Action::Write { offset, data });
        assert_eq!(
            absurd.expect_err("unaddressable"),
            ErrorKind::Invalid,
            "offset {offset}"
        );
        let punched = run_one(
            &mut io,
            file,
            Action::Punch {
                offset,
                len_bytes: 512,
            },
        );
        assert_eq!(
            punched.expect_err("unaddressable"),
            ErrorKind::Invalid,
            "offset {offset}"
        );
    }
}

fn wait_one(io: &mut impl BlockIo) -> Completion {
    let mut done = Vec::new();
    while done.is_empty() {
        io.poll(Wait::Forever, &mut done).expect("poll works");
    }
    assert_eq!(done.len(), 1);
    done.remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FaultDisk, Order, RamDisk, Rng, SimDisk};

    struct Make<F>(F);

    impl<Io: BlockIo, F: FnMut(&[u8]) -> (Io, FileId)> Bench for Make<F> {
        type Io = Io;
        fn disk_with(&mut self, content: &[u8]) -> (Io, FileId) {
            (self.0)(content)
        }
    }

    fn ram(content: &[u8]) -> (RamDisk, FileId) {
        let mut disk = RamDisk::new();
        let file = disk.add_file(content);
        (disk, file)
    }

    #[test]
    fn memory_disks_conform() {
        run(&mut Make(ram));
        run(&mut Make(|content: &[u8]| {
            let (disk, file) = ram(content);
            (FaultDisk::new(disk), file)
        }));
    }

    #[test]
    fn simulated_disks_conform_in_any_order_of_completion() {
        run(&mut Make(|content: &[u8]| {
            let (disk, file) = ram(content);
            (SimDisk::from_ram(&disk, Order::Fifo), file)
        }));
        for seed in 0..8 {
            run(&mut Make(|content: &[u8]| {
                let (disk, file) = ram(content);
                (
                    SimDisk::from_ram(&disk, Order::Random(Rng::new(seed))),
                    file,
                )
            }));
        }
    }
}
