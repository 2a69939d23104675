//! Back ends that die and front ends that come again: no request is lost, and those done again are
//! done in their order.

use super::*;
use vhost_driver::{Ask, Done, Status, number};

/// Puts writes into every slot of every queue, each to a sector of its own.
fn fill(front: &mut FrontEnd, first: u64) -> Vec<u64> {
    let mut sectors = Vec::new();
    let mut sector = first;
    for queue in &mut front.queues {
        while let Some(slot) = queue.slot() {
            queue.fill(slot, &[sector as u8; 512]);
            queue.put(slot, Ask::Write { sector, bytes: 512 });
            sectors.push(sector);
            sector += 1;
        }
        queue.tell();
    }
    sectors
}

fn finish(front: &mut FrontEnd, done: &mut [Vec<Done>]) {
    for (queue, done) in front.queues.iter_mut().zip(done) {
        while queue.in_flight() > 0 {
            assert!(queue.wait(done, 20_000).unwrap(), "a request is lost");
        }
        assert!(done.iter().all(|d| d.status == Status::Ok));
    }
}

/// Waits until the back end keeps so many jobs to itself.
fn wait_kept(back: &BackEnd, front: &FrontEnd, kept: usize) {
    while back.kept.load(Ordering::SeqCst) < kept {
        // The answer comes after a round of the loop.
        front.config(8).unwrap();
    }
}

#[test]
fn requests_that_a_dead_back_end_took_are_done_by_the_next_in_their_order() {
    for answered in [0, 1, 17, 63] {
        let disk = Disk::new();
        disk.lock().answered_max = Some(answered);
        let (back, socket) = BackEnd::start(export(), &disk);
        let mut front = FrontEnd::on(socket, Options::default()).unwrap();
        let sectors = fill(&mut front, 0);
        wait_kept(&back, &front, 64 - answered);
        back.kill().unwrap();
        assert_eq!(front.queues[0].used_index(), answered as u16);

        disk.lock().answered_max = None;
        let before = disk.lock().log.len();
        let (back, socket) = BackEnd::start(export(), &disk);
        front.reconnect_on(socket).unwrap();
        let mut done = [Vec::new()];
        finish(&mut front, &mut done);
        assert_eq!(done[0].len(), 64, "each is answered once");
        let again: Vec<u64> = back.log()[before..].iter().map(|(_, s)| *s).collect();
        assert_eq!(
            again,
            sectors[answered..],
            "what was not answered, in order"
        );
        // And the queue goes on.
        let sectors = fill(&mut front, 100);
        finish(&mut front, &mut [Vec::new()]);
        for sector in sectors {
            assert_eq!(front.read(sector, 512).unwrap(), [sector as u8; 512]);
        }
    }
}

#[test]
fn back_ends_may_die_one_after_the_other() {
    let disk = Disk::new();
    disk.lock().answered_max = Some(0);
    let options = Options {
        queues: 3,
        ..Options::default()
    };
    let (mut back, socket) = BackEnd::start(export(), &disk);
    let mut front = FrontEnd::on(socket, options).unwrap();
    let sectors = fill(&mut front, 0);
    let mut done = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..10 {
        wait_kept(&back, &front, sectors.len() - 7 * round);
        back.kill().unwrap();
        let answered: u16 = front.queues.iter().map(|q| q.used_index()).sum();
        assert_eq!(usize::from(answered), 7 * round);
        disk.lock().answered_max = Some(7 * (round + 1));
        let (next, socket) = BackEnd::start(export(), &disk);
        front.reconnect_on(socket).unwrap();
        back = next;
    }
    disk.lock().answered_max = None;
    back.kill().unwrap();
    let (_back, socket) = BackEnd::start(export(), &disk);
    front.reconnect_on(socket).unwrap();
    finish(&mut front, &mut done);
    let answers: usize = done.iter().map(Vec::len).sum();
    assert_eq!(answers, sectors.len());
    for sector in sectors {
        assert_eq!(front.read(sector, 512).unwrap(), [sector as u8; 512]);
    }
}

#[test]
fn a_region_of_queues_of_another_size_is_refused() {
    let (_back, mut front) = BackEnd::with(Options::default());
    front.write(0, &[1; 512]).unwrap();
    front.stop_queue(0).unwrap();
    let num = [0_u32.to_le_bytes(), 32_u32.to_le_bytes()].concat();
    let connection = front.connection();
    assert!(
        connection
            .ask_done(number::SET_VRING_NUM, &num, &[])
            .unwrap()
    );
    let [kick, ..] = front.queues[0].fds();
    let started = connection.ask_done(number::SET_VRING_KICK, &[0; 8], &[kick]);
    assert!(!started.unwrap());
}

#[test]
fn a_front_end_that_comes_back_without_a_region_goes_on_at_its_base() {
    let disk = Disk::new();
    let options = Options {
        inflight: false,
        ..Options::default()
    };
    let (back, socket) = BackEnd::start(export(), &disk);
    let mut front = FrontEnd::on(socket, options).unwrap();
    for sector in 0..10 {
        front.write(sector, &[1; 512]).unwrap();
    }
    back.kill().unwrap();
    let (_back, socket) = BackEnd::start(export(), &disk);
    front.reconnect_on(socket).unwrap();
    assert_eq!(front.read(9, 512).unwrap(), [1; 512]);
    assert_eq!(front.stop_queue(0).unwrap(), 11);
}

#[test]
fn a_queue_is_stopped_while_the_disk_holds_requests_back_and_they_are_done_later() {
    let (back, mut front) = BackEnd::with(Options::default());
    back.disk.lock().answered_max = Some(10);
    let sectors = fill(&mut front, 0);
    wait_kept(&back, &front, 54);
    back.disk.lock().paused = true;
    assert_eq!(front.stop_queue(0).unwrap(), 64);
    assert_eq!(front.queues[0].used_index(), 10);
    back.disk.lock().paused = false;
    back.disk.lock().answered_max = None;
    front.start_queue(0).unwrap();
    let mut done = [Vec::new()];
    finish(&mut front, &mut done);
    assert_eq!(done[0].len(), 64, "each is answered once");
    for sector in sectors {
        assert_eq!(front.read(sector, 512).unwrap(), [sector as u8; 512]);
    }
}
