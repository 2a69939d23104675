//! A disk that fails on purpose: the nth operation of a kind, once or from then on.

use crate::{
    Action, BlockIo, Completion, Error, ErrorKind, FileId, Op, SharedBuffer, Token, Verb, Wait,
};
use std::collections::VecDeque;

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Nothing is done; the answer is [`ErrorKind::Io`].
    Io,
    /// Nothing is done; the answer is [`ErrorKind::NoSpace`].
    NoSpace,
    /// The first half of a write is done (in sectors), then [`ErrorKind::Io`]. As `Io` for others.
    Half,
    /// Nothing is done; the answer is [`ErrorKind::Unsupported`].
    Unsupported,
}

/// Which operations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// All of them.
    Any,
    /// Those that change the file.
    Changes,
    /// One kind.
    Only(Verb),
}

impl Target {
    fn hits(self, verb: Verb) -> bool {
        match self {
            Target::Any => true,
            Target::Changes => !matches!(verb, Verb::Read),
            Target::Only(only) => verb == only,
        }
    }
}

/// What goes wrong and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Which operations count.
    pub target: Target,
    /// The first one that fails, counted from zero.
    pub nth: u64,
    /// How many fail from there on; `u64::MAX` is for ever.
    pub times: u64,
    /// How they fail.
    pub kind: FaultKind,
}

/// Wraps a disk and makes operations fail.
#[derive(Debug)]
pub struct FaultDisk<D> {
    inner: D,
    fault: Option<Fault>,
    /// The only file whose operations count.
    file: Option<FileId>,
    seen: u64,
    struck: u64,
    failed: VecDeque<Completion>,
    /// Writes cut in half: the whole data goes back with the completion.
    halved: Vec<(Token, SharedBuffer, Error)>,
}

impl<D: BlockIo> FaultDisk<D> {
    /// Wraps `inner`; no fault yet.
    pub fn new(inner: D) -> Self {
        let (failed, halved) = (VecDeque::new(), Vec::new());
        Self {
            inner,
            fault: None,
            file: None,
            seen: 0,
            struck: 0,
            failed,
            halved,
        }
    }

    /// Sets the fault and starts to count; `None` heals the disk.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
        self.file = None;
        self.seen = 0;
        self.struck = 0;
    }

    /// As [`FaultDisk::set_fault`], for operations on one file; those on others do not count.
    pub fn set_fault_on(&mut self, file: FileId, fault: Fault) {
        self.set_fault(Some(fault));
        self.file = Some(file);
    }

    /// How many operations failed since the fault was set.
    pub fn struck(&self) -> u64 {
        self.struck
    }

    /// The disk inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The disk inside.
    pub fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }

    /// Unwraps it.
    pub fn into_inner(self) -> D {
        self.inner
    }

    fn strike(&mut self, op: &Op) -> Option<FaultKind> {
        let fault = self
            .fault
            .filter(|fault| fault.target.hits(op.action.verb()))
            .filter(|_| self.file.is_none_or(|file| file == op.file))?;
        let index = self.seen;
        self.seen = self.seen.saturating_add(1);
        let last = fault.nth.saturating_add(fault.times);
        (fault.nth..last).contains(&index).then(|| {
            self.struck = self.struck.saturating_add(1);
            fault.kind
        })
    }
}

impl<D: BlockIo> BlockIo for FaultDisk<D> {
    fn submit(&mut self, op: Op) {
        let Some(kind) = self.strike(&op) else {
            return self.inner.submit(op);
        };
        let (error_kind, code) = match kind {
            FaultKind::Io | FaultKind::Half => (ErrorKind::Io, 5),
            FaultKind::NoSpace => (ErrorKind::NoSpace, 28),
            FaultKind::Unsupported => (ErrorKind::Unsupported, 95),
        };
        let error = op.error(error_kind, Some(code));
        let Op {
            token,
            file,
            action,
        } = op;
        if kind == FaultKind::Half
            && let Action::Write { offset, data } = &action
            && let Some(half) =
                data.slice(0..(data.len() / 2).next_multiple_of(512).min(data.len()))
        {
            self.halved.push((token, data.clone(), error));
            let action = Action::Write {
                offset: *offset,
                data: half,
            };
            return self.inner.submit(Op {
                token,
                file,
                action,
            });
        }
        let payload = action.into_payload();
        self.failed.push_back(Completion {
            token,
            result: Err(error),
            payload,
        });
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Completion>) -> std::io::Result<()> {
        let wait = if self.failed.is_empty() {
            wait
        } else {
            Wait::No
        };
        let first = done.len();
        self.inner.poll(wait, done)?;
        for completion in done.iter_mut().skip(first) {
            let found = self
                .halved
                .iter()
                .position(|(token, ..)| *token == completion.token);
            if let Some(index) = found {
                let (_, data, error) = self.halved.swap_remove(index);
                completion.result = Err(error);
                completion.payload = crate::Payload::Written(data);
            }
        }
        done.extend(self.failed.drain(..));
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight().saturating_add(self.failed.len())
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.inner.size_bytes(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, RamDisk, SparseBytes};

    #[test]
    fn only_the_chosen_operations_fail() {
        let mut ram = RamDisk::new();
        let file = ram.add_file(SparseBytes::zeroed(0));
        let mut disk = FaultDisk::new(ram);
        let target = Target::Only(Verb::Write);
        disk.set_fault(Some(Fault {
            target,
            nth: 1,
            times: 1,
            kind: FaultKind::Half,
        }));
        let mut results = Vec::new();
        for token in 0..3 {
            let data = Buffer::copy_of(&[1; 1024]).share();
            let action = Action::Write {
                offset: token * 1024,
                data,
            };
            let result = disk.run(
                Op {
                    token,
                    file,
                    action,
                },
                &mut Vec::new(),
            );
            results.push(result.map(|_| ()).map_err(|e| e.kind));
        }
        assert_eq!(results, [Ok(()), Err(ErrorKind::Io), Ok(())]);
        let bytes = disk.inner().files()[0].to_vec();
        assert_eq!(
            [bytes[1023], bytes[1024], bytes[1536], bytes[2048]],
            [1, 1, 0, 1]
        );
        assert_eq!(disk.struck(), 1);
    }
}
