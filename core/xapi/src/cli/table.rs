//! All commands: names, parameters, help, and what runs them.

use super::context::Context;
use super::errors::CliError;
use super::generic::{self, Verb};
use super::kinds::{self, Kind};
use super::{other, storage, transfer, vbd, vm};
use std::pin::Pin;

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), CliError>> + Send + 'a>>;
type Handler = for<'a> fn(&'a mut Context<'_>) -> Running<'a>;

/// A command with code of its own.
pub(super) struct Spec {
    name: &'static str,
    required: &'static [&'static str],
    /// A `:` or `-` at the end stands for a family: `device-config:` for `device-config:location`.
    optional: &'static [&'static str],
    /// The kind of objects it selects, if it does.
    selects: Option<&'static str>,
    help: &'static str,
    run: Handler,
}

/// A command: its own, or one that every kind of object has.
#[derive(Clone, Copy)]
pub(super) enum Command {
    Own(&'static Spec),
    Generic(&'static Kind, Verb),
}

/// `name(required; optional) selects "help" => handler`
macro_rules! commands {
    ($($name:literal ($($required:literal),*; $($optional:literal),*)
        $($selects:ident)? $help:literal => $handler:path;)*) => {
        &[$(Spec {
            name: $name,
            required: &[$($required),*],
            optional: &[$($optional),*],
            selects: commands!(@selects $($selects)?),
            help: $help,
            run: |context| Box::pin($handler(context)),
        }),*]
    };
    (@selects) => { None };
    (@selects $kind:ident) => { Some(stringify!($kind)) };
}

static OWN: &[Spec] = commands! {
    "event-wait" ("class";) "Waits until an object of the class passes all conditions" => other::event_wait;
    "host-disable" (;) host "Lets no VM start on the host" => other::host_disable;
    "host-enable" (;) host "Lets VMs start on the host again" => other::host_enable;
    "message-create" ("name", "priority", "body"; "vm-uuid", "host-uuid", "sr-uuid", "pool-uuid")
        "Makes a message about an object" => other::message_create;
    "message-destroy" (; "uuid", "uuids") "Removes messages" => other::message_destroy;
    "message-destroy-all" (; "before", "after", "priority")
        "Removes all messages, or the ones of a time or a priority" => other::message_destroy_all;
    "pbd-create" ("host-uuid", "sr-uuid"; "device-config:")
        "Says how a host reaches an SR" => storage::pbd_create;
    "pbd-destroy" ("uuid";) "Removes a PBD" => storage::pbd_destroy;
    "pbd-plug" ("uuid";) "Attaches the SR to the host" => storage::pbd_plug;
    "pbd-unplug" ("uuid";) "Detaches the SR from the host" => storage::pbd_unplug;
    "snapshot-destroy" ("uuid";) "Removes the record of a snapshot of a VM" => vm::destroy;
    "sr-create" ("name-label", "type"; "name-description", "host-uuid", "device-config:", "shared",
        "physical-size", "content-type", "sm-config:")
        "Makes a storage repository and plugs it in" => storage::sr_create;
    "sr-destroy" ("uuid";) "Wipes a storage repository and forgets it" => storage::sr_destroy;
    "sr-forget" ("uuid";) "Forgets a storage repository and leaves its contents" => storage::sr_forget;
    "sr-introduce" ("name-label", "type", "uuid"; "name-description", "shared", "content-type", "sm-config:")
        "Takes up a storage repository that exists" => storage::sr_introduce;
    "sr-probe" ("type"; "host-uuid", "device-config:", "sm-config:")
        "Looks for storage repositories" => storage::sr_probe;
    "sr-probe-ext" ("type"; "host-uuid", "device-config:", "sm-config:")
        "Looks for storage repositories and lists what is found" => storage::sr_probe_ext;
    "sr-scan" ("uuid";) "Looks for new and vanished disks" => storage::sr_scan;
    "sr-update" ("uuid";) "Refreshes what is known of an SR" => storage::sr_update;
    "task-cancel" ("uuid";) "Asks a task to end" => other::task_cancel;
    "user-password-change" ("new"; "old") "Changes the password of the user" => other::password_change;
    "vbd-create" ("vm-uuid", "device"; "vdi-uuid", "bootable", "type", "mode", "unpluggable")
        "Gives a VM a drive" => vbd::create;
    "vbd-destroy" ("uuid";) "Takes a drive away" => vbd::destroy;
    "vbd-eject" ("uuid";) "Takes the medium out of a drive" => vbd::eject;
    "vbd-insert" ("uuid", "vdi-uuid";) "Puts a medium in a drive" => vbd::insert;
    "vbd-plug" ("uuid";) "Attaches a drive to its running VM" => vbd::plug;
    "vbd-unplug" ("uuid"; "timeout", "force") "Detaches a drive from its running VM" => vbd::unplug;
    "vdi-clone" ("uuid"; "driver-params-", "new-name-label", "new-name-description")
        "Makes a writable copy that shares its blocks" => storage::vdi_clone;
    "vdi-copy" ("uuid"; "sr-uuid", "base-vdi-uuid", "into-vdi-uuid", "progress")
        "Makes a full copy, on any SR" => storage::vdi_copy;
    "vdi-create" ("sr-uuid", "name-label", "virtual-size"; "name-description", "sm-config:", "sharable",
        "tags:", "type", "other-config:")
        "Makes a disk" => storage::vdi_create;
    "vdi-destroy" ("uuid";) "Removes a disk and its contents" => storage::vdi_destroy;
    "vdi-export" ("uuid", "filename"; "format", "base", "progress")
        "Writes a disk to a file" => transfer::vdi_export;
    "vdi-forget" ("uuid";) "Forgets a disk and leaves its contents" => storage::vdi_forget;
    "vdi-import" ("uuid", "filename"; "format", "progress")
        "Fills a disk from a file" => transfer::vdi_import;
    "vdi-introduce" ("uuid", "sr-uuid", "type", "location"; "name-label", "name-description", "sharable",
        "read-only", "managed", "other-config:", "xenstore-data:", "sm-config:")
        "Takes up a disk that exists" => storage::vdi_introduce;
    "vdi-resize" ("uuid", "disk-size"; "online", "progress") "Makes a disk larger" => storage::vdi_resize;
    "vdi-revert" ("uuid";) "Takes a disk back to its snapshot" => storage::vdi_revert;
    "vdi-snapshot" ("uuid"; "driver-params-") "Takes a snapshot of a disk" => storage::vdi_snapshot;
    "vdi-update" ("uuid";) "Refreshes what is known of a disk" => storage::vdi_update;
    "vm-clone" ("new-name-label"; "new-name-description") vm
        "Makes a VM like another, with clones of its disks" => vm::clone;
    "vm-copy" ("new-name-label"; "new-name-description", "sr-uuid", "progress") vm
        "Makes a VM like another, with copies of its disks" => vm::copy;
    "vm-create" ("name-label"; "name-description", "memory", "vcpus", "kernel", "ramdisk", "args")
        "Makes a VM without disks" => vm::create;
    "vm-destroy" ("uuid";) "Removes a VM and leaves its disks" => vm::destroy;
    "vm-disk-add" ("disk-size", "device"; "sr-uuid") vm "Makes a disk for a VM" => vm::disk_add;
    "vm-disk-list" (; "vbd-params", "vdi-params") vm "Lists the drives and disks of a VM" => vm::disk_list;
    "vm-disk-remove" ("device";) vm "Removes a disk of a VM and its contents" => vm::disk_remove;
    "vm-pause" (;) vm "Stops the processors of a VM" => vm::pause;
    "vm-reboot" (; "force") vm "Restarts a VM; with --force at once" => vm::reboot;
    "vm-reset-powerstate" (; "force") vm "Notes that a VM does not run" => vm::reset_power_state;
    "vm-resume" (; "force", "on", "progress") vm "Goes on with a suspended VM" => vm::resume;
    "vm-shutdown" (; "force", "progress") vm "Shuts a VM down; with --force at once" => vm::shutdown;
    "vm-snapshot" ("new-name-label"; "new-name-description", "ignore-vdi-uuids") vm
        "Takes a snapshot of a VM and its disks" => vm::snapshot;
    "vm-start" (; "force", "on", "paused", "progress") vm "Starts a VM" => vm::start;
    "vm-suspend" (; "progress") vm "Saves the memory of a VM and stops it" => vm::suspend;
    "vm-uninstall" (; "force") vm "Removes a VM and its disks" => vm::uninstall;
    "vm-unpause" (;) vm "Goes on with a paused VM" => vm::unpause;
};

/// Finds a command.
pub(super) fn find(name: &str) -> Option<Command> {
    if let Some(own) = OWN.iter().find(|spec| spec.name == name) {
        return Some(Command::Own(own));
    }
    Verb::ALL.into_iter().rev().find_map(|verb| {
        let kind = kinds::kind(name.strip_suffix(verb.suffix())?)?;
        Command::generic(kind, verb)
    })
}

/// Lists all commands, sorted by name.
pub(super) fn all() -> Vec<Command> {
    let own = OWN.iter().map(Command::Own);
    let generic = kinds::kinds().iter().flat_map(|kind| {
        Verb::ALL
            .into_iter()
            .filter_map(|verb| Command::generic(kind, verb))
    });
    let mut all: Vec<_> = own.chain(generic).collect();
    all.sort_by_cached_key(|command| command.name());
    all
}

impl Command {
    /// A kind of which nothing can be written has no commands to write.
    fn generic(kind: &'static Kind, verb: Verb) -> Option<Self> {
        let reads = matches!(verb, Verb::List | Verb::ParamList | Verb::ParamGet);
        let writes = kind.columns.iter().any(|column| column.writable);
        (reads || writes).then_some(Self::Generic(kind, verb))
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Own(spec) => spec.name.to_owned(),
            Self::Generic(kind, verb) => format!("{}{}", kind.name, verb.suffix()),
        }
    }

    pub(super) fn required(self) -> &'static [&'static str] {
        match self {
            Self::Own(spec) => spec.required,
            Self::Generic(_, verb) => verb.required(),
        }
    }

    pub(super) fn optional(self) -> Vec<String> {
        match self {
            Self::Own(spec) => spec.optional.iter().map(|&name| name.to_owned()).collect(),
            Self::Generic(kind, verb) => verb.optional(kind),
        }
    }

    /// The kind of objects the command selects.
    pub(super) fn selects(self) -> Option<&'static str> {
        match self {
            Self::Own(spec) => spec.selects,
            Self::Generic(..) => None,
        }
    }

    pub(super) fn help(self) -> &'static str {
        match self {
            Self::Own(spec) => spec.help,
            Self::Generic(_, verb) => verb.help(),
        }
    }

    /// The parameters of a command of its own; they select nothing.
    pub(super) fn takes(self) -> Vec<&'static str> {
        match self {
            Self::Own(spec) => spec.required.iter().chain(spec.optional).copied().collect(),
            Self::Generic(..) => Vec::new(),
        }
    }

    /// Says whether people type it often: what `help` shows first.
    pub(super) fn is_common(self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Generic(kind, verb) => {
                verb == Verb::List
                    && matches!(
                        kind.name,
                        "vm" | "sr" | "vdi" | "vbd" | "host" | "task" | "message"
                    )
            }
        }
    }

    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        match self {
            Self::Own(spec) => (spec.run)(context).await,
            Self::Generic(kind, verb) => generic::run(context, kind, verb).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_sorted_unique_and_found_by_their_name() {
        assert!(OWN.is_sorted_by_key(|spec| spec.name));
        let names: Vec<_> = all().into_iter().map(Command::name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "a command is there twice");
        for name in &names {
            assert_eq!(find(name).map(Command::name).as_ref(), Some(name));
        }
        assert!(names.len() > 250, "{} commands", names.len());
    }

    #[test]
    fn longer_verbs_are_not_taken_for_shorter_ones() {
        for (name, verb) in [("vm-list", Verb::List), ("vm-param-list", Verb::ParamList)] {
            assert!(matches!(find(name), Some(Command::Generic(kind, found))
                if kind.name == "vm" && found == verb));
        }
        assert!(find("vm-fly").is_none() && find("-list").is_none());
    }

    #[test]
    fn what_a_command_selects_is_a_kind() {
        for kind in OWN.iter().filter_map(|spec| spec.selects) {
            assert!(kinds::kind(kind).is_some(), "{kind}");
        }
    }
}
