//! QEMU's command line and the JSON of its devices, made from a domain's configuration. Pure.

use crate::accelerator::Accelerator;
use hypervisor::{Access, Boot, DeviceName, DiskConfig, DomainConfig, Error, ErrorKind};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use units::MIB;

/// First PCI slot for disks: 0 is the host bridge, 1 the chipset, 3 the random number generator.
const FIRST_DISK_SLOT: u8 = 4;
/// Slots of a PCI bus.
const SLOTS: u8 = 32;
/// How long QEMU holds requests back while a disk's server is away, before they fail.
const RECONNECT_SECONDS: u32 = 60;

/// The QOM and QMP id of a disk's device.
pub(crate) fn device_id(device: DeviceName) -> String {
    format!("vbd-{device}")
}

/// The device an id names.
pub(crate) fn device_of_id(id: &str) -> Option<DeviceName> {
    id.strip_prefix("vbd-")?.parse().ok()
}

/// The name of a disk's block node.
pub(crate) fn node_name(device: DeviceName) -> String {
    format!("disk-{device}")
}

/// The block node of a disk, as `blockdev-add` and `-blockdev` take it.
pub(crate) fn block_node(disk: &DiskConfig) -> Value {
    json!({
        "driver": "nbd",
        "node-name": node_name(disk.device),
        "server": {"type": "unix", "path": disk.target.socket},
        "export": disk.target.export,
        "read-only": disk.access == Access::ReadOnly,
        "discard": "unmap",
        "reconnect-delay": RECONNECT_SECONDS,
    })
}

/// The device of a disk, as `device_add` and `-device` take it. The position fixes the slot, so a
/// guest that goes by slots finds its disks in the order of their names.
///
/// # Errors
/// `Invalid` for a position that has no slot.
pub(crate) fn disk_device(disk: &DiskConfig, boot: bool) -> Result<Value, Error> {
    let slot = disk
        .device
        .position()
        .checked_add(FIRST_DISK_SLOT)
        .filter(|slot| *slot < SLOTS);
    let slot = slot.ok_or_else(|| {
        let last = DeviceName::from_position(SLOTS - FIRST_DISK_SLOT - 1);
        let context = format!("no slot for device {}: the last is {last}", disk.device);
        Error::new(ErrorKind::Invalid, context)
    })?;
    let mut device = json!({
        "driver": "virtio-blk-pci",
        "id": device_id(disk.device),
        "drive": node_name(disk.device),
        "serial": disk.device.to_string(),
        "addr": format!("{slot:#x}"),
        "werror": "report",
        "rerror": "report",
    });
    if boot {
        device["bootindex"] = json!(1);
    }
    Ok(device)
}

fn plain(path: impl Into<PathBuf>) -> Result<String, Error> {
    path.into().into_os_string().into_string().map_err(|path| {
        Error::new(
            ErrorKind::Invalid,
            format!("path {} is not UTF-8", path.display()),
        )
    })
}

/// Commas separate the parts of an option; a doubled one is a comma.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

/// All arguments after the binary's name.
///
/// # Errors
/// `Invalid` for paths that are not UTF-8 and disks without a slot.
pub(crate) fn command_line(
    config: &DomainConfig,
    dir: &Path,
    accelerator: Accelerator,
    sandbox: bool,
) -> Result<Vec<String>, Error> {
    let mut line: Vec<String> = accelerator.arguments().map(str::to_owned).to_vec();
    let mut add = |option: &str, value: String| line.extend([option.to_owned(), value]);
    let here = |name: &str| plain(dir.join(name)).map(|path| escaped(&path));
    add("-machine", "pc".to_owned());
    add("-name", format!("guest={}", escaped(&config.name)));
    add("-uuid", config.vm.to_string());
    add("-m", (config.memory_bytes / MIB).to_string());
    add("-smp", config.vcpus.to_string());
    add(
        "-action",
        "reboot=shutdown,shutdown=pause,panic=pause".to_owned(),
    );
    add("-display", "none".to_owned());
    let socket = |id: &str, name: &str| {
        Ok::<_, Error>(format!(
            "socket,id={id},path={},server=on,wait=off",
            here(name)?
        ))
    };
    add("-chardev", socket("control", "qmp.sock")?);
    add("-mon", "chardev=control,mode=control".to_owned());
    add("-chardev", "stdio,id=recorder,signal=off".to_owned());
    add("-mon", "chardev=recorder,mode=control".to_owned());
    add("-pidfile", here("pid")?);
    if sandbox {
        let deny = "obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        add("-sandbox", format!("on,{deny}"));
    }
    if config.serial_console {
        let log = format!("logfile={},logappend=on", here("console.log")?);
        add(
            "-chardev",
            format!("{},{log}", socket("console", "console.sock")?),
        );
        add("-serial", "chardev:console".to_owned());
    }
    if let Boot::Kernel {
        kernel,
        ramdisk,
        cmdline,
    } = &config.boot
    {
        add("-kernel", plain(kernel)?);
        add("-append", cmdline.clone());
        if let Some(ramdisk) = ramdisk {
            add("-initrd", plain(ramdisk)?);
        }
    }
    add("-device", "pvpanic".to_owned());
    add("-device", "virtio-rng-pci,addr=0x3".to_owned());
    let first = config.disks.iter().map(|disk| disk.device).min();
    for disk in &config.disks {
        let boot = config.boot == Boot::Disk && Some(disk.device) == first;
        add("-blockdev", block_node(disk).to_string());
        add("-device", disk_device(disk, boot)?.to_string());
    }
    line.extend(["-S", "-nodefaults", "-no-user-config"].map(str::to_owned));
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::NbdTarget;
    use units::VmUuid;

    fn config(name: &str, positions: &[u8]) -> DomainConfig {
        let disk = |position: &u8| DiskConfig {
            device: DeviceName::from_position(*position),
            access: Access::ReadWrite,
            target: NbdTarget {
                socket: "/s".into(),
                export: "a,b".to_owned(),
            },
        };
        DomainConfig {
            vm: VmUuid::random(),
            name: name.to_owned(),
            memory_bytes: 256 * MIB,
            vcpus: 3,
            boot: Boot::Disk,
            disks: positions.iter().map(disk).collect(),
            serial_console: true,
        }
    }

    fn line(config: &DomainConfig) -> Result<Vec<String>, Error> {
        command_line(config, Path::new("/run/x,y"), Accelerator::Tcg, true)
    }

    #[test]
    fn commas_cannot_add_options() {
        let line = line(&config("-a,id=b", &[])).unwrap();
        assert!(line.contains(&"guest=-a,,id=b".to_owned()));
        assert!(line.contains(&"/run/x,,y/pid".to_owned()));
        let chardevs: Vec<_> = line
            .iter()
            .filter(|text| text.starts_with("socket,"))
            .collect();
        assert!(
            chardevs.iter().all(|text| text.contains("path=/run/x,,y/")),
            "{chardevs:?}"
        );
        assert_eq!(chardevs.len(), 2);
    }

    #[test]
    fn the_lowest_disk_boots_and_slots_follow_names() {
        let line = line(&config("n", &[2, 1, 27])).unwrap();
        let devices: Vec<Value> = line
            .iter()
            .filter(|text| text.contains("virtio-blk-pci"))
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        let facts: Vec<_> = devices
            .iter()
            .map(|device| {
                (
                    device["serial"].clone(),
                    device["addr"].clone(),
                    device["bootindex"].clone(),
                )
            })
            .collect();
        let wanted = [
            (json!("xvdc"), json!("0x6"), Value::Null),
            (json!("xvdb"), json!("0x5"), json!(1)),
            (json!("xvdab"), json!("0x1f"), Value::Null),
        ];
        assert_eq!(facts, wanted);
    }

    #[test]
    fn a_position_without_a_slot_is_refused() {
        assert_eq!(
            line(&config("n", &[28])).unwrap_err().kind(),
            ErrorKind::Invalid
        );
        assert_eq!(
            line(&config("n", &[255])).unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }

    #[test]
    fn ids_name_devices_and_others_do_not() {
        for position in [0, 27] {
            let device = DeviceName::from_position(position);
            assert_eq!(device_of_id(&device_id(device)), Some(device));
        }
        assert_eq!(device_of_id("vbd-sda"), None);
        assert_eq!(device_of_id("xvda"), None);
    }
}
