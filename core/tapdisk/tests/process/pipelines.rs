//! Clients that keep many requests in flight and leave: each request is answered, and then the
//! connection is closed.

use crate::bench::{Bench, MIB, dp, rid};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &0_u16.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// Connects and chooses the export by `EXPORT_NAME`, without zeroes.
fn connect(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let hello = [
        &3_u32.to_be_bytes()[..],
        b"IHAVEOPT",
        &1_u32.to_be_bytes(),
        &1_u32.to_be_bytes(),
        b"d",
    ];
    stream.write_all(&hello.concat()).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

/// Takes one simple reply and returns its cookie.
fn reply(stream: &mut UnixStream, payloads: &[u32]) -> usize {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
    let cookie = usize::try_from(cookie).unwrap();
    let payload = usize::try_from(payloads[cookie]).unwrap();
    stream.read_exact(&mut vec![0; payload]).unwrap();
    cookie
}

/// Request sizes that go through receive buffers, that do not, and both in turn.
const SIZES: [&[u32]; 4] = [
    &[4096],
    &[512, 16384, 65536],
    &[1 << 20],
    &[4096, 300 << 10, 512, 128 << 10],
];

fn pipeline(socket: &Path, depth: usize, sizes: &[u32], leave_early: bool) {
    const REQUESTS: usize = 150;
    let mut stream = connect(socket);
    let (mut open, mut payloads) = (Vec::new(), Vec::new());
    for number in 0..REQUESTS {
        let size = sizes[number % sizes.len()];
        let command = [WRITE, WRITE, READ, FLUSH][number * 7 % 11 % 4];
        let (length, offset) = if command == FLUSH {
            (0, 0)
        } else {
            (size, (number * 37 % 96) as u64 * 64 * 1024)
        };
        payloads.push(if command == READ { size } else { 0 });
        let mut bytes = request(command, number as u64, offset, length);
        if command == WRITE {
            bytes.extend(vec![number as u8 | 1; size as usize]);
        }
        open.push(number);
        stream.write_all(&bytes).unwrap();
        if leave_early && number + 1 == REQUESTS {
            stream.write_all(&request(DISCONNECT, 0, 0, 0)).unwrap();
        }
        while open.len() >= depth || (number + 1 == REQUESTS && !open.is_empty()) {
            let cookie = reply(&mut stream, &payloads);
            open.retain(|number| *number != cookie);
        }
    }
    if !leave_early {
        stream.write_all(&request(DISCONNECT, 0, 0, 0)).unwrap();
    }
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "and nothing after");
}

#[tokio::test]
async fn a_request_that_was_accepted_is_answered_before_its_disk_is_closed() {
    let bench = Bench::in_memory();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let mut stream = tokio::task::spawn_blocking(move || connect(&socket))
        .await
        .unwrap();
    client.freeze(&rid(), &[dp("d")]).await.unwrap();
    let write = [request(WRITE, 0, 0, 512), vec![7; 512]].concat();
    stream.write_all(&write).unwrap();
    while client.list(&rid()).await.unwrap()[0].stats.in_flight == 0 {}
    client.close(&rid(), &dp("d")).await.unwrap();
    assert_eq!(reply(&mut stream, &[0]), 0);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(bench.flat(&["a.vhd"])[..512], [7; 512]);
}

#[tokio::test]
async fn every_request_is_answered_whatever_its_size_and_how_many_there_are() {
    for bench in [Bench::new(), Bench::in_memory()] {
        let client = bench.client("a").await;
        bench.create(&client, "a.vhd", 16 * MIB, None).await;
        let socket = bench.serve(&client, "d", &["a.vhd"]).await;
        let clients = std::thread::spawn(move || {
            for sizes in SIZES {
                for depth in [1, 2, 8, 32] {
                    pipeline(&socket, depth, sizes, depth % 3 == 2);
                }
            }
        });
        tokio::task::spawn_blocking(|| clients.join().unwrap())
            .await
            .unwrap();
    }
}
