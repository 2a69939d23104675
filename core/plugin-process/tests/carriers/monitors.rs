//! Monitors of both carriers: the write rate alert, the template, and one that floods.

use crate::harness::{Bench, CARRIERS, artifact, manifest};
use plugin::{Event, Grants, MetricRow, Monitor, MonitorPlugin, Request};
use std::collections::BTreeMap;
use units::RequestId;

const VM: &str = "11111111-2222-3333-4444-555555555555";

fn step(time_s: f64, bytes_per_s: f64) -> Event {
    let row = |name: &str, value| MetricRow {
        class: "VM".to_owned(),
        uuid: VM.to_owned(),
        name: name.to_owned(),
        value,
    };
    let half = bytes_per_s / 2.0;
    let rows = vec![
        row("vbd_xvda_write", half),
        row("vbd_xvdb_write", half),
        row("vbd_xvda_read", 1e12),
        row("vbd_xvdc_write", f64::NAN),
    ];
    Event::Metrics { time_s, rows }
}

fn the_monitor(bench: &Bench) -> Monitor {
    bench.host.monitors().into_iter().next().unwrap()
}

#[tokio::test]
async fn the_write_rate_alert_raises_and_clears_once_each() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let grants = Grants {
            messages: true,
            settings: BTreeMap::from([
                ("limit_bytes_per_s".to_owned(), "1000".to_owned()),
                ("period_s".to_owned(), "10".to_owned()),
            ]),
            ..Grants::default()
        };
        let file = artifact("write-rate-alert", carrier);
        bench
            .host
            .load(&file, &manifest("write-rate-alert"), &grants)
            .await
            .unwrap();
        let monitor = the_monitor(&bench);
        for (time_s, rate) in [
            (0.0, 500.0),
            (5.0, 2000.0),
            (10.0, 2000.0),
            (15.0, 2000.0), // raised
            (20.0, 3000.0),
            (25.0, 900.0), // between the limits
            (30.0, 100.0),
            (40.0, 100.0), // cleared
            (45.0, 100.0),
        ] {
            monitor.handle(&step(time_s, rate)).await.unwrap();
        }
        let messages = bench.services.messages.lock().clone();
        let names: Vec<_> = messages
            .iter()
            .map(|message| message.name.as_str())
            .collect();
        assert_eq!(names, ["ALARM", "ALARM_CLEARED"], "{carrier:?}");
        let alarm = &messages[0];
        assert_eq!(
            (alarm.priority, alarm.class.as_str(), alarm.uuid.as_str()),
            (3, "VM", VM)
        );
        assert_eq!(alarm.body, "value: 2000\nconfig: write_rate > 1000");
        assert!(
            bench.services.state.lock().is_empty(),
            "a VM at rest leaves no state"
        );
    }
}

#[tokio::test]
async fn the_template_tells_what_it_is_granted_to_see() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        bench.load("plugin-template", carrier).await.unwrap();
        let monitor = the_monitor(&bench);
        for (class, operation) in [("VM", "add"), ("VM", "mod"), ("SR", "add"), ("VM", "del")] {
            monitor.offer(Event::Object {
                class: class.to_owned(),
                uuid: VM.to_owned(),
                operation: operation.to_owned(),
                record_json: "{}".to_owned(),
            });
        }
        bench
            .until("two messages came", |bench| {
                bench.services.messages.lock().len() >= 2
            })
            .await;
        let messages = bench.services.messages.lock().clone();
        let bodies: Vec<_> = messages
            .iter()
            .map(|message| message.body.as_str())
            .collect();
        assert_eq!(bodies, ["add", "del"], "{carrier:?}");
    }
}

#[tokio::test]
async fn a_flood_of_messages_is_cut_at_the_rate() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        bench.load("hostile-monitor", carrier).await.unwrap();
        the_monitor(&bench).handle(&step(0.0, 1.0)).await.unwrap();
        assert_eq!(
            bench.services.messages.lock().len(),
            10,
            "the manifest allows ten a minute"
        );
        let key = ("hostile-monitor".to_owned(), "refused".to_owned());
        let refused = bench.services.state.lock().get(&key).cloned().unwrap();
        assert_eq!(
            refused, "90 of 3 rows",
            "and the row that is not a number is left out"
        );
    }
}

#[tokio::test]
async fn a_timer_comes_back_as_an_event() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        bench.load("hostile-monitor", carrier).await.unwrap();
        let change = Event::Object {
            class: "VM".to_owned(),
            uuid: VM.to_owned(),
            operation: "soon".to_owned(),
            record_json: "{}".to_owned(),
        };
        let request = Request::new(RequestId::random());
        request
            .scope(the_monitor(&bench).handle(&change))
            .await
            .unwrap();
        let key = ("hostile-monitor".to_owned(), "timer".to_owned());
        let came = |bench: &Bench| {
            bench
                .services
                .state
                .lock()
                .get(&key)
                .is_some_and(|name| name == "soon")
        };
        bench.until("the timer came", came).await;
    }
}
