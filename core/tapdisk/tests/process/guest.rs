//! Guests of QEMU on disks served over vhost-user: firmware that boots from one, and Linux that
//! works on while the process behind its disk is killed and replaced.
//!
//! Needs `qemu-system-x86_64` and the test kernel that `cargo xtask setup` fetches.

use crate::bench::{Bench, MIB, dp, kill, pattern, rid};
use datapath::{Client, listen};
use rustix::process::Signal;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use test_guest::{Initramfs, Kernel};
use vhd_checker::Strictness;

/// Long enough for Debian's kernel to boot under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

const SERIAL: &str = "vhost disk 1";

/// Pieces the Linux guests write, and how far apart they lie: each in a block of its own.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 48;
const STRIDE_PIECES: usize = 37;

/// Writes piece after piece, from one processor and queue and then the other, and in the end reads
/// all of them back past its caches.
const WRITES: &str = r#"
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; usleep 200000; done
echo "GUEST serial $(cat /sys/block/vda/serial)"
echo "GUEST queues $(ls /sys/block/vda/mq | wc -l)"
echo "GUEST sectors $(cat /sys/block/vda/size)"
piece() { dd bs=64k count=1 "$@" 2> /dev/null; }
n=0
while [ $n -lt 48 ]; do
    how=oflag=direct
    [ $((n % 5)) = 0 ] && how=conv=fsync
    taskset $((n % 2 + 1)) dd bs=64k count=1 if=/data of=/dev/vda skip=$n seek=$((n * 37)) $how \
        2> /tmp/said || { echo "GUEST failed $n"; cat /tmp/said; }
    n=$((n + 1))
    echo "GUEST wrote $n"
done
sync
blkdiscard -o 130023424 -l 4194304 /dev/vda && echo GUEST discarded
echo 3 > /proc/sys/vm/drop_caches
n=0
bad=0
while [ $n -lt 48 ]; do
    piece if=/data skip=$n of=/tmp/is
    piece if=/dev/vda skip=$((n * 37)) iflag=direct of=/tmp/was
    cmp /tmp/is /tmp/was || bad=$((bad + 1))
    n=$((n + 1))
done
echo "GUEST sectors in the end $(cat /sys/block/vda/size)"
echo "GUEST bad $bad"
"#;

/// A machine that is running; killed when dropped.
struct Machine {
    child: Child,
    console: PathBuf,
}

impl Machine {
    fn start(bench: &Bench, socket: &std::path::Path, more: &[&str]) -> Self {
        let console = bench.path("console");
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-machine", "pc,memory-backend=memory"])
            .args(["-m", "256", "-smp", "2", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot"])
            .args([
                "-object",
                "memory-backend-memfd,id=memory,size=256M,share=on",
            ])
            .arg("-chardev")
            .arg(format!(
                "socket,id=disk,reconnect=1,path={}",
                socket.display()
            ))
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(more)
            .stdin(Stdio::null())
            // What it says about a back end that dies is expected.
            .stderr(std::fs::File::create(bench.path("qemu.log")).unwrap())
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        Self { child, console }
    }

    /// Boots Linux with the pieces as a file and this script.
    fn linux(bench: &Bench, socket: &std::path::Path, data: &[u8]) -> Self {
        let kernel = Kernel::find().unwrap();
        let initramfs = Initramfs::new(&kernel, &["virtio_pci", "virtio_blk"]).unwrap();
        let initramfs = initramfs.file("data", 0o644, data).build(WRITES);
        std::fs::write(bench.path("initramfs"), initramfs).unwrap();
        let image = kernel.image.to_str().unwrap().to_owned();
        let initramfs = bench.path("initramfs").to_str().unwrap().to_owned();
        let append = "console=ttyS0 quiet panic=-1";
        Self::start(
            bench,
            socket,
            &["-kernel", &image, "-initrd", &initramfs, "-append", append],
        )
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a text on the console.
    async fn says(&mut self, text: &str) {
        let since = Instant::now();
        while !self.console().contains(text) {
            let ended = self.child.try_wait().unwrap();
            let over = since.elapsed() > PATIENCE || ended.is_some();
            assert!(!over, "no {text:?} ({ended:?}) in\n{}", self.console());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for the machine to power itself off.
    async fn ended(&mut self) {
        let since = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(
                since.elapsed() < PATIENCE,
                "it goes on:\n{}",
                self.console()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn serve(bench: &Bench, client: &Client) -> PathBuf {
    bench.open(client, "d", &["d.vhd"]).await;
    let socket = bench.path("vhost.sock");
    let listener = listen(&socket).unwrap();
    client
        .serve_vhost_user(&rid(), &dp("d"), SERIAL, listener)
        .await
        .unwrap();
    socket
}

fn assert_right(console: &str) {
    assert!(console.contains("GUEST bad 0"), "{console}");
    assert!(!console.contains("GUEST failed"), "{console}");
}

/// Closes the disk and looks at the image with eyes of another's making.
async fn assert_pieces(bench: &Bench, client: &Client, data: &[u8]) {
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("d.vhd", Strictness::Closed);
    let flat = bench.flat(&["d.vhd"]);
    for (index, piece) in data.chunks(PIECE_BYTES).enumerate() {
        let at = index * STRIDE_PIECES * PIECE_BYTES;
        assert!(flat[at..at + PIECE_BYTES] == *piece, "piece {index}");
    }
}

#[tokio::test]
async fn linux_writes_flushes_discards_and_hears_of_a_new_size() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 256 * MIB, None).await;
    let socket = serve(&bench, &client).await;
    let data = pattern(3, PIECES * PIECE_BYTES);
    let mut machine = Machine::linux(&bench, &socket, &data);
    machine.says("GUEST wrote 9").await;
    client.resize(&rid(), &dp("d"), 512 * MIB).await.unwrap();
    machine.says("GUEST bad").await;
    let console = machine.console();
    for expected in [
        &format!("GUEST serial {SERIAL}"),
        "GUEST queues 2",
        &format!("GUEST sectors {}", 256 * MIB / 512),
        &format!("GUEST sectors in the end {}", 512 * MIB / 512),
        "GUEST discarded",
    ] {
        assert!(console.contains(expected), "no {expected:?} in\n{console}");
    }
    assert_right(&console);
    machine.ended().await;
    let stats = client.list(&rid()).await.unwrap()[0].stats;
    assert!(stats.flushes > 0 && stats.errors == 0, "{stats:?}");
    assert_pieces(&bench, &client, &data).await;
}

#[tokio::test]
async fn linux_goes_on_while_the_process_behind_its_disk_is_killed_and_replaced() {
    let bench = Bench::new();
    let mut client = bench.client("a").await;
    bench.create(&client, "d.vhd", 256 * MIB, None).await;
    let socket = serve(&bench, &client).await;
    let data = pattern(4, PIECES * PIECE_BYTES);
    let mut machine = Machine::linux(&bench, &socket, &data);
    for piece in [4, 17, 33, 48] {
        machine.says(&format!("GUEST wrote {piece}")).await;
        kill(client.pid(), Signal::KILL);
        client.gone().await;
        client = bench.client("a").await;
        serve(&bench, &client).await;
    }
    machine.says("GUEST bad").await;
    assert_right(&machine.console());
    machine.ended().await;
    assert_pieces(&bench, &client, &data).await;
}

/// Sixteen-bit code for a boot sector: reads the sector after it by the firmware's services and
/// prints what that says on the serial line, up to a zero.
const BOOT_CODE: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xbe, 0x40, 0x7c, // mov si, 0x7c40: the packet below
    0xb4, 0x42, // mov ah, 0x42: read by block address
    0xcd, 0x13, // int 0x13, drive in dl as it came
    0xbe, 0x00, 0x80, // mov si, 0x8000
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz stop
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xf4, // stop: hlt
    0xeb, 0xfd, // jmp stop
];

/// Sixteen bytes long, one sector, to 0000:8000, from block 1.
const READ_PACKET: &[u8] = &[16, 0, 1, 0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

#[tokio::test]
async fn firmware_boots_from_the_disk() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 16 * MIB, None).await;
    let socket = serve(&bench, &client).await;
    let mut sectors = vec![0; 1024];
    sectors[..BOOT_CODE.len()].copy_from_slice(BOOT_CODE);
    sectors[0x40..][..READ_PACKET.len()].copy_from_slice(READ_PACKET);
    sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
    let text = b"booted from the disk\n\0";
    sectors[512..][..text.len()].copy_from_slice(text);
    let options = vhost_driver::Options::default();
    let mut front = vhost_driver::FrontEnd::connect(&socket, options).unwrap();
    front.write(0, &sectors).unwrap();
    drop(front);
    let mut machine = Machine::start(&bench, &socket, &[]);
    machine.says("booted from the disk").await;
}
