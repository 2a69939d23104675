//! A device on memory of our own, for tests and fuzzers: no socket, no front end.

use super::protocol::RingAddresses;
use super::{Device, Export, Inflight, Memory, QUEUE_SIZE_MAX, Queue};

/// A device whose first queue runs on the rings at these addresses (table, available, used), with
/// these features and this inflight region; `None` where no queue can be there.
pub fn device(
    export: Export,
    memory: Memory,
    size: u16,
    [table, available, used]: [u64; 3],
    features: u64,
    inflight: Option<&[u8]>,
) -> Option<Device> {
    if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
        return None;
    }
    let rings = RingAddresses {
        table,
        used,
        available,
    };
    let event_idx = features & super::config::feature::EVENT_IDX != 0;
    let mut device = Device::new(export);
    device.features = features;
    let mut queue = Queue::new(&memory, size, &rings, 0, event_idx)?;
    let ring = device.rings.first_mut()?;
    ring.inflight = inflight.and_then(|bytes| Inflight::of_bytes(bytes, size));
    if let Some(inflight) = &mut ring.inflight {
        let heads = inflight.recover(queue.used_index()).ok()?;
        let taken = u16::try_from(heads.len()).ok()?;
        queue.set_next_available(queue.used_index().wrapping_add(taken));
        ring.again = heads.into();
    }
    ring.size = size;
    ring.addresses = Some(rings);
    ring.enabled = true;
    ring.queue = Some(queue);
    device.memory = memory;
    Some(device)
}

/// Every feature a device of this kind offers.
pub fn features(export: &Export) -> u64 {
    super::config::features(export)
}
