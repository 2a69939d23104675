//! What a plugin can break: each ends as an error to its caller, the daemon is unharmed and the
//! next call is served.

use crate::harness::{Bench, CARRIERS};
use plugin::PluginErrorKind::{Crashed, Incompatible, Timeout};
use plugin::{Carrier, Request, SrHandle, StoragePlugin};
use std::time::{Duration, Instant};
use units::RequestId;

/// Runs a case on both carriers; the words differ.
async fn breaks_on_both(mode: &str, kind: plugin::PluginErrorKind, words: [&str; 2]) {
    for (carrier, word) in CARRIERS.into_iter().zip(words) {
        let bench = Bench::new();
        bench.hostile(carrier).await.breaks(mode, kind, word).await;
    }
}

#[tokio::test]
async fn an_endless_loop_ends_at_the_deadline() {
    breaks_on_both("loop", Timeout, ["no answer within", "process was ended"]).await;
}

#[tokio::test]
async fn growing_memory_ends_at_the_limit() {
    breaks_on_both(
        "grow",
        Crashed,
        ["memory limit of 32 MiB", "memory allocation"],
    )
    .await;
}

#[tokio::test]
async fn a_panic_is_told_with_its_text() {
    breaks_on_both("panic", Crashed, ["on purpose", "on purpose"]).await;
}

#[tokio::test]
async fn an_abort_is_a_crash() {
    breaks_on_both("abort", Crashed, ["unreachable", "signal 6"]).await;
}

#[tokio::test]
async fn leaving_the_process_is_a_crash() {
    breaks_on_both("exit", Crashed, ["it called exit", "code 3"]).await;
}

#[tokio::test]
async fn deep_recursion_is_a_crash() {
    breaks_on_both("recurse", Crashed, ["wasm trap", "stack overflow"]).await;
}

#[tokio::test]
async fn an_answer_over_the_frame_limit_is_refused() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let error = hostile.misbehave("full", "").await.unwrap_err();
        assert!(
            matches!(error.kind, Incompatible | Crashed),
            "{carrier:?}: {error}"
        );
        assert_eq!(hostile.misbehave("well", "").await.unwrap(), "well");
        let list = hostile
            .storage
            .container_list(&SrHandle("many ".to_owned()))
            .await;
        let error = list.unwrap_err();
        assert!(
            matches!(error.kind, Incompatible | Crashed | Timeout),
            "{carrier:?}: {error}"
        );
        assert_eq!(hostile.misbehave("well", "").await.unwrap(), "well");
    }
}

#[tokio::test]
async fn a_killed_process_is_restarted_for_the_next_call() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let first = bench.host.process_id("hostile-storage").unwrap();
        let process = rustix::process::Pid::from_raw(first.try_into().unwrap()).unwrap();
        let looping = hostile.misbehave("loop", "");
        let killing = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        };
        let (result, ()) = tokio::join!(looping, killing);
        let error = result.unwrap_err();
        assert_eq!(error.kind, Crashed, "{error}");
        assert!(error.message.contains("signal 9"), "{error}");
        assert_eq!(hostile.misbehave("well", "").await.unwrap(), "well");
        assert_ne!(bench.host.process_id("hostile-storage"), Some(first));
    }
}

#[tokio::test]
async fn a_looping_component_does_not_disturb_other_calls() {
    let bench = Bench::new();
    let hostile = bench.hostile(Carrier::Component).await;
    let looping = hostile.misbehave("loop", "");
    let others = async {
        for _ in 0..20 {
            assert_eq!(hostile.misbehave("well", "").await.unwrap(), "well");
        }
        Instant::now()
    };
    let (looped, others_done) = tokio::join!(
        async {
            let result = looping.await;
            (result, Instant::now())
        },
        others
    );
    assert_eq!(looped.0.unwrap_err().kind, Timeout);
    assert!(others_done < looped.1, "others waited for the loop");
}

#[tokio::test]
async fn the_callers_deadline_is_kept_when_it_is_the_earlier_one() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let start = Instant::now();
        let mut request = Request::new(RequestId::random());
        request.deadline = Some(start + Duration::from_millis(100));
        let error = request
            .scope(hostile.misbehave("loop", ""))
            .await
            .unwrap_err();
        assert_eq!(error.kind, Timeout, "{carrier:?}: {error}");
        assert!(
            start.elapsed() < Duration::from_millis(1800),
            "{:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn repeated_crashes_are_held_back() {
    let bench = Bench::new();
    let hostile = bench.hostile(Carrier::SharedObject).await;
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(
            hostile.misbehave("abort", "").await.unwrap_err().kind,
            Crashed
        );
    }
    assert_eq!(hostile.misbehave("well", "").await.unwrap(), "well");
    // 0 + 100 + 200 + 400 ms of back-off.
    assert!(
        start.elapsed() >= Duration::from_millis(700),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn processes_end_with_the_host() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let process = bench.host.process_id("hostile-storage").unwrap();
        let running = format!("/proc/{process}");
        assert!(std::path::Path::new(&running).exists());
        bench.host.shutdown().await;
        let status = std::fs::read_to_string(format!("{running}/stat")).unwrap_or_default();
        assert!(status.is_empty() || status.contains(" Z "), "{status}");
        assert_eq!(
            hostile.misbehave("well", "").await.unwrap_err().kind,
            Crashed
        );
    }
}
