//! PyPI's XenAPI, the reference client, against a real daemon.

use e2e::host::{Built, Host, Hypervisor};

fn host() -> (tempfile::TempDir, Host) {
    let built = Built::beside_this_test().expect("a build");
    let dir = tempfile::tempdir().expect("a directory");
    let host = Host::start(&built, dir.path(), Hypervisor::Simulator).expect("a host");
    std::fs::create_dir_all(dir.path().join("sr/one")).expect("a directory");
    (dir, host)
}

fn passes(program: &str) {
    let (dir, host) = host();
    let prelude = "
import sys, threading, time, XenAPI
url, user, password = sys.argv[1:4]
s = XenAPI.Session(url)
s.xenapi.login_with_password(user, password, '1.0', 'e2e')
x = s.xenapi
host = x.host.get_all()[0]
def make_sr(name='one'):
    return x.SR.create(host, {'location': LOCATION}, '0', name, '', 'file', 'user', False, {})
def make_vdi(sr, name='disk', size=16 << 20):
    return x.VDI.create({'name_label': name, 'name_description': '', 'SR': sr, 'virtual_size': str(size),
        'type': 'user', 'sharable': False, 'read_only': False, 'other_config': {}, 'xenstore_data': {},
        'sm_config': {}, 'tags': []})
def failure(call, *args):
    try:
        call(*args)
    except XenAPI.Failure as e:
        return e.details
    raise AssertionError('it did not fail')
";
    let location = format!("LOCATION = {:?}\n", dir.path().join("sr/one"));
    let out = host
        .python(&format!(
            "{prelude}\n{location}\n{program}\nprint('PASSED')"
        ))
        .unwrap_or_else(|error| panic!("{error:#}\ndaemon log:\n{}", host.log_tail()));
    assert!(out.trim().ends_with("PASSED"), "{out}");
}

#[test]
fn it_logs_in_creates_a_vdi_and_snapshots_it() {
    passes(
        "
sr = make_sr()
vdi = make_vdi(sr)
record = x.VDI.get_record(vdi)
assert record['virtual_size'] == str(16 << 20), record
assert record['SR'] == sr and record['managed'] and not record['is_a_snapshot'], record
snap = x.VDI.snapshot(vdi, {})
record = x.VDI.get_record(snap)
assert record['is_a_snapshot'] and record['snapshot_of'] == vdi, record
assert x.VDI.get_snapshots(vdi) == [snap]
assert sorted(x.SR.get_VDIs(sr)) == sorted([vdi, snap])
x.VDI.set_name_label(vdi, 'renamed \\u2713 <&>')
assert x.VDI.get_by_name_label('renamed \\u2713 <&>') == [vdi]
assert x.VDI.get_by_uuid(record['uuid']) == snap
clone = x.VDI.clone(snap, {})
assert not x.VDI.get_is_a_snapshot(clone)
x.VDI.resize(vdi, str(64 << 20))
assert x.VDI.get_virtual_size(vdi) == str(64 << 20)
for v in (clone, snap, vdi):
    x.VDI.destroy(v)
assert x.SR.get_VDIs(sr) == []
",
    );
}

#[test]
fn it_follows_events_from_a_token_without_missing_any() {
    passes(
        "
sr = make_sr()
first = x.event_from(['VDI', 'task'], '', 10.0) if hasattr(x, 'event_from') else s.xenapi.event['from'](['*'], '', 10.0) if False else getattr(x.event, 'from')(['VDI'], '', 10.0)
token = first['token']
vdi = make_vdi(sr)
seen = []
deadline = time.time() + 20
while time.time() < deadline and not any(e['operation'] == 'del' for e in seen):
    if len(seen) == 1:
        x.VDI.destroy(vdi)
    batch = getattr(x.event, 'from')(['VDI'], token, 5.0)
    token = batch['token']
    seen += [e for e in batch['events'] if e['ref'] == vdi]
    if not seen:
        continue
    if seen[0]['operation'] == 'add' and len(seen) == 1:
        assert seen[0]['class'] == 'vdi' and seen[0]['snapshot']['name_label'] == 'disk', seen
        x.VDI.destroy(vdi)
        seen.append({'operation': 'asked'})
assert [e['operation'] for e in seen][0] == 'add' and seen[-1]['operation'] == 'del', seen
quiet = getattr(x.event, 'from')(['VDI'], token, 0.5)
assert quiet['events'] == [] and int(quiet['valid_ref_counts'].get('vdi', '0')) == 0, quiet
assert failure(getattr(x.event, 'from'), ['VDI'], 'nonsense', 1.0)[0] == 'EVENT_FROM_TOKEN_PARSE_FAILURE'
",
    );
}

#[test]
fn asynchronous_calls_end_in_a_task_with_their_result() {
    passes(
        "
sr = make_sr()
vdi = make_vdi(sr)
task = x.Async.VDI.snapshot(vdi, {})
while x.task.get_status(task) == 'pending':
    time.sleep(0.05)
assert x.task.get_status(task) == 'success', x.task.get_record(task)
result = x.task.get_result(task)
assert result.startswith('<value>OpaqueRef:'), result
snap = result[len('<value>'):-len('</value>')]
assert x.VDI.get_snapshot_of(snap) == vdi
assert x.task.get_progress(task) == 1.0
failed = x.Async.VDI.destroy('OpaqueRef:00000000-0000-0000-0000-000000000000')
while x.task.get_status(failed) == 'pending':
    time.sleep(0.05)
assert x.task.get_status(failed) == 'failure'
assert x.task.get_error_info(failed)[:2] == ['HANDLE_INVALID', 'VDI'], x.task.get_error_info(failed)
",
    );
}

#[test]
fn a_vm_goes_through_its_power_states() {
    passes(
        "
sr = make_sr()
vdi = make_vdi(sr)
template = x.VM.create({'name_label': 'vm', 'name_description': '', 'user_version': '1', 'is_a_template': False,
    'affinity': 'OpaqueRef:NULL', 'memory_static_max': str(256 << 20), 'memory_dynamic_max': str(256 << 20),
    'memory_dynamic_min': str(256 << 20), 'memory_static_min': str(128 << 20), 'VCPUs_params': {}, 'VCPUs_max': '1',
    'VCPUs_at_startup': '1', 'actions_after_shutdown': 'destroy', 'actions_after_reboot': 'restart',
    'actions_after_crash': 'restart', 'PV_bootloader': '', 'PV_kernel': '', 'PV_ramdisk': '', 'PV_args': '',
    'PV_bootloader_args': '', 'PV_legacy_args': '', 'HVM_boot_policy': 'BIOS order', 'HVM_boot_params': {'order': 'c'},
    'platform': {}, 'PCI_bus': '', 'other_config': {}, 'recommendations': ''})
vm = template
vbd = x.VBD.create({'VM': vm, 'VDI': vdi, 'userdevice': '0', 'bootable': True, 'mode': 'RW', 'type': 'Disk',
    'unpluggable': True, 'empty': False, 'other_config': {}, 'qos_algorithm_type': '', 'qos_algorithm_params': {}})
assert x.VM.get_power_state(vm) == 'Halted'
x.VM.start(vm, False, False)
assert x.VM.get_power_state(vm) == 'Running' and x.VM.get_domid(vm) != '-1'
assert x.VBD.get_currently_attached(vbd)
details = failure(x.VM.start, vm, False, False)
assert details[0] == 'VM_BAD_POWER_STATE' and details[2:] == ['halted', 'running'], details
assert failure(x.VDI.destroy, vdi)[0] == 'VDI_IN_USE'
x.VM.pause(vm)
assert x.VM.get_power_state(vm) == 'Paused'
x.VM.unpause(vm)
snap = x.VDI.snapshot(vdi, {})
x.VM.clean_reboot(vm)
assert x.VM.get_power_state(vm) == 'Running'
x.VM.clean_shutdown(vm)
assert x.VM.get_power_state(vm) == 'Halted' and not x.VBD.get_currently_attached(vbd)
x.VM.start(vm, True, False)
assert x.VM.get_power_state(vm) == 'Paused'
x.VM.hard_shutdown(vm)
x.VM.destroy(vm)
assert failure(x.VM.get_record, vm) == ['HANDLE_INVALID', 'VM', vm]
",
    );
}

#[test]
fn errors_are_the_codes_that_clients_match() {
    passes(
        "
nowhere = 'OpaqueRef:11111111-1111-1111-1111-111111111111'
assert failure(x.VDI.get_record, nowhere) == ['HANDLE_INVALID', 'VDI', nowhere]
assert failure(x.VDI.get_by_uuid, 'no-such-uuid') == ['UUID_INVALID', 'VDI', 'no-such-uuid']
assert failure(x.VDI.get_record)[0] == 'MESSAGE_PARAMETER_COUNT_MISMATCH'
assert failure(x.VDI.fly, nowhere) == ['MESSAGE_METHOD_UNKNOWN', 'VDI.fly']
assert failure(x.SR.create, host, {}, '0', 'n', '', 'nosuch', 'user', False, {})[0] == 'SR_UNKNOWN_DRIVER'
assert x.GPU_group.get_all_records() == {} and x.PVS_site.get_all_records() == {}
sr = make_sr()
assert failure(x.SR.destroy, sr) if x.SR.get_VDIs(sr) else True
other = XenAPI.Session(url)
assert failure(other.xenapi.login_with_password, user, 'wrong', '1.0', 'e2e')[0] == 'SESSION_AUTHENTICATION_FAILED'
raw = XenAPI.Session(url)
raw._session = 'OpaqueRef:22222222-2222-2222-2222-222222222222'
assert failure(raw.VDI.get_all, raw._session)[0] == 'SESSION_INVALID' if hasattr(raw, 'VDI') else True
ref = s._session
s.xenapi.session.logout()
",
    );
}
