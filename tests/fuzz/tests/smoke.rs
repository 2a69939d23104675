//! The committed corpus and mutations of it, by seed, under every rule.

use block::Rng;
use std::path::{Path, PathBuf};
use xylem_fuzz::{TARGETS, mutate, target};

/// Mutations per target: together they take a few seconds.
const RUNS: u64 = 1000;

/// What the whole corpus may take in the tree.
const CORPUS_BYTES_MAX: u64 = 300 << 10;

fn corpus_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name)
}

fn smoke(name: &str) {
    let target = target(name).expect("a target");
    let corpus = mutate::read_corpus(&corpus_of(name)).expect("a corpus");
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for bytes in &corpus {
        target.check(bytes);
    }
    for seed in 0..RUNS {
        let bytes = mutate::mutated(&mut Rng::new(seed + 1), &corpus);
        let _shown = Shown {
            name,
            seed,
            bytes: &bytes,
        };
        target.check(&bytes);
    }
}

/// Tells which input it was when the target panics.
struct Shown<'a> {
    name: &'a str,
    seed: u64,
    bytes: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let path = std::env::temp_dir().join(format!("{}-{}.input", self.name, self.seed));
        let kept = std::fs::write(&path, self.bytes);
        eprintln!(
            "{} at seed {}: {} {kept:?}",
            self.name,
            self.seed,
            path.display()
        );
    }
}

macro_rules! smoke_tests {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            smoke($name);
        })*

        #[test]
        fn every_target_has_a_smoke_run() {
            let tested = [$($name),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, tested);
        }
    };
}

smoke_tests! {
    images_however_damaged_open_or_are_refused: "open",
    written_images_hold_what_was_written: "write",
    chains_read_as_the_naive_reader_reads_them: "chain",
    locators_decode_to_what_was_meant_or_not_at_all: "locators",
    batmaps_follow_their_model: "batmap",
    journals_bring_back_one_of_two_states: "journal",
    nbd_sessions_answer_each_request_once: "nbd",
    control_frames_come_out_as_they_went_in: "control",
    vhost_requests_have_the_effect_and_the_status_they_must: "vhost",
}

#[test]
fn the_corpus_is_small() {
    let sizes = TARGETS.iter().flat_map(|target| {
        let corpus = mutate::read_corpus(&corpus_of(target.name)).expect("a corpus");
        corpus.into_iter().map(|bytes| bytes.len() as u64)
    });
    let total: u64 = sizes.sum();
    assert!(total <= CORPUS_BYTES_MAX, "{total} bytes");
}
