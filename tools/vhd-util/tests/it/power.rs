//! Disks that lose power: after so many writes and flushes nothing more is taken, and what was not
//! flushed is there in part, in whole or not at all.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use vhd_rs::{ReadAt, WriteAt};

/// Operations that all disks of a machine still perform.
pub(crate) type Fuel = Rc<Cell<u32>>;

/// A disk in memory.
#[derive(Clone)]
pub(crate) struct Sim {
    /// What is safe.
    durable: Vec<u8>,
    /// What a program sees.
    live: Vec<u8>,
    /// What is on its way from one to the other.
    pending: Vec<Op>,
    fuel: Fuel,
}

#[derive(Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Size(u64),
}

impl Sim {
    pub(crate) fn new(bytes: Vec<u8>, fuel: Fuel) -> Self {
        Self {
            durable: bytes.clone(),
            live: bytes,
            pending: Vec::new(),
            fuel,
        }
    }

    fn burn(&self) -> io::Result<()> {
        let left = self.fuel.get().checked_sub(1);
        let left = left.ok_or_else(|| io::Error::other("the power is off"))?;
        self.fuel.set(left);
        Ok(())
    }

    /// What is on the disk when power comes back, for one of many ways to lose it: 0 loses all that
    /// is pending, 1 keeps all, others keep an arbitrary part and tear it.
    pub(crate) fn after_power_cut(&self, way: u64) -> Vec<u8> {
        let mut disk = self.durable.clone();
        let mut dice = way;
        for op in &self.pending {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let kept = match way {
                0 => 0,
                1 => 4,
                _ => dice >> 61,
            };
            match op {
                _ if kept == 0 => {}
                Op::Size(size) => disk.set_size(*size).expect("memory"),
                Op::Write(at, bytes) if kept > 3 => disk.write_all_at(*at, bytes).expect("memory"),
                Op::Write(at, bytes) => {
                    let sectors = bytes.len() / 512 * kept as usize / 4;
                    disk.write_all_at(*at, &bytes[..sectors * 512])
                        .expect("memory");
                }
            }
        }
        disk
    }
}

impl ReadAt for Sim {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.live.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.live.read_exact_at(offset, buffer)
    }
}

impl WriteAt for Sim {
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.burn()?;
        self.live.write_all_at(offset, bytes)?;
        self.pending.push(Op::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.burn()?;
        self.live.set_size(bytes)?;
        self.pending.push(Op::Size(bytes));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.burn()?;
        for op in std::mem::take(&mut self.pending) {
            match op {
                Op::Write(at, bytes) => self.durable.write_all_at(at, &bytes)?,
                Op::Size(size) => self.durable.set_size(size)?,
            }
        }
        Ok(())
    }
}
