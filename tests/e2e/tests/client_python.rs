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
events = getattr(x.event, 'from')
token = events(['VDI'], '', 10.0)['token']

def next_of(vdi, wanted):
    global token
    deadline = time.time() + 20
    while time.time() < deadline:
        batch = events(['VDI'], token, 5.0)
        token = batch['token']
        for e in batch['events']:
            if e['ref'] == vdi and e['operation'] in wanted:
                return e
    raise AssertionError(wanted)

vdi = make_vdi(sr)
added = next_of(vdi, ['add'])
assert added['class'] == 'vdi' and added['snapshot']['name_label'] == 'disk', added
x.VDI.set_name_description(vdi, 'changed')
changed = next_of(vdi, ['mod'])
while changed['snapshot']['name_description'] != 'changed':
    changed = next_of(vdi, ['mod'])

# A client that waits is told at once, not at its time-out.
told = []
def wait():
    begun = time.time()
    told.append((next_of(vdi, ['del']), time.time() - begun))
waiter = threading.Thread(target=wait)
waiter.start()
time.sleep(1)
other = XenAPI.Session(url)
other.xenapi.login_with_password(user, password, '1.0', 'e2e')
other.xenapi.VDI.destroy(vdi)
waiter.join()
assert 'snapshot' not in told[0][0] and told[0][1] < 4, told

quiet = events(['VDI'], token, 0.5)
assert quiet['events'] == [] and int(quiet['valid_ref_counts'].get('vdi', '0')) == 0, quiet
assert failure(events, ['VDI'], 'nonsense', 1.0)[0] == 'EVENT_FROM_TOKEN_PARSE_FAILURE'
pool = x.pool.get_all()[0]
assert x.event.inject('pool', pool).count(',') == 1
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
failed = x.Async.SR.destroy(sr)
while x.task.get_status(failed) == 'pending':
    time.sleep(0.05)
assert x.task.get_status(failed) == 'failure'
assert x.task.get_error_info(failed)[0] == 'SR_NOT_EMPTY', x.task.get_error_info(failed)
x.task.destroy(failed)
assert failure(x.task.get_status, failed)[:2] == ['HANDLE_INVALID', 'task']
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
make_vdi(sr)
assert failure(x.SR.destroy, sr)[0] == 'SR_NOT_EMPTY'
other = XenAPI.Session(url)
assert failure(other.xenapi.login_with_password, user, 'wrong', '1.0', 'e2e')[0] == 'SESSION_AUTHENTICATION_FAILED'
raw = XenAPI.xmlrpclib.ServerProxy(url)
answer = raw.VDI.get_all('OpaqueRef:22222222-2222-2222-2222-222222222222')
assert answer['Status'] == 'Failure', answer
assert answer['ErrorDescription'] == ['SESSION_INVALID', 'OpaqueRef:22222222-2222-2222-2222-222222222222']
mine = s._session
s.xenapi.session.logout()
assert raw.VDI.get_all(mine)['ErrorDescription'] == ['SESSION_INVALID', mine]
",
    );
}
