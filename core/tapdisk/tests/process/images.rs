//! Operations on images that nobody has open.

use crate::bench::{Bench, MIB, rid};
use datapath::protocol::ParentRef;
use datapath::{ErrorKind, Extent, NewImage};
use uuid::Uuid;
use vhd_checker::Strictness;

fn new_image(uuid: Uuid) -> NewImage {
    NewImage {
        uuid,
        virtual_bytes: 10 * MIB - 1,
        resize_max_bytes: 64 * MIB,
        parent: None,
        extent: Extent::Grows,
    }
}

#[tokio::test]
async fn a_created_image_is_what_was_asked_for_and_sound() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let uuid = Uuid::new_v4();
    let made = client
        .image_create(&rid(), new_image(uuid), bench.file("a.vhd"))
        .await
        .unwrap();
    assert_eq!(
        (made.uuid, made.virtual_bytes),
        (uuid, 10 * MIB),
        "rounded up to 2 MiB"
    );
    assert_eq!((made.parent_uuid, made.allocated_blocks), (None, 0));
    assert!(made.clean && !made.hidden && made.resize_max_bytes >= 64 * MIB);
    bench.assert_sound("a.vhd", Strictness::Closed);

    let mut child = new_image(Uuid::new_v4());
    child.parent = Some(ParentRef {
        name: "a.vhd".into(),
        uuid,
        mtime_unix_s: 1_700_000_000,
    });
    let child = client
        .image_create(&rid(), child, bench.file("b.vhd"))
        .await
        .unwrap();
    assert_eq!(child.parent_uuid, Some(uuid));
    assert_eq!(child.parent_name.as_deref(), Some("./a.vhd"));
    let queried = client
        .image_query(&rid(), Extent::Grows, bench.file("b.vhd"))
        .await
        .unwrap();
    assert_eq!(queried, child);
}

#[tokio::test]
async fn creating_again_is_a_success_and_over_another_image_a_refusal() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let first = new_image(Uuid::new_v4());
    let made = client
        .image_create(&rid(), first.clone(), bench.file("a.vhd"))
        .await
        .unwrap();
    let bytes = std::fs::read(bench.path("a.vhd")).unwrap();
    let again = client
        .image_create(&rid(), first, bench.file("a.vhd"))
        .await
        .unwrap();
    assert_eq!(again, made);
    let other = new_image(Uuid::new_v4());
    let error = client
        .image_create(&rid(), other, bench.file("a.vhd"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains(&made.uuid.to_string()), "{error}");
    assert_eq!(std::fs::read(bench.path("a.vhd")).unwrap(), bytes);
}

#[tokio::test]
async fn resize_and_hide_change_what_they_should_and_nothing_else() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let made = bench.create(&client, "a.vhd", 8 * MIB, None).await;
    let file = || bench.file("a.vhd");
    for _ in 0..2 {
        let grown = client
            .image_resize(&rid(), 20 * MIB, Extent::Grows, file())
            .await
            .unwrap();
        assert_eq!((grown.virtual_bytes, grown.uuid), (20 * MIB, made.uuid));
    }
    for hidden in [true, true, false] {
        client
            .image_hide(&rid(), hidden, Extent::Grows, file())
            .await
            .unwrap();
        let found = client
            .image_query(&rid(), Extent::Grows, file())
            .await
            .unwrap();
        assert_eq!((found.hidden, found.clean), (hidden, true));
    }
    bench.assert_sound("a.vhd", Strictness::Closed);
    let shrink = client
        .image_resize(&rid(), 4 * MIB, Extent::Grows, file())
        .await
        .unwrap_err();
    assert_eq!(shrink.kind, ErrorKind::Unsupported);
    let beyond = client
        .image_resize(&rid(), 1 << 40, Extent::Grows, file())
        .await
        .unwrap_err();
    assert_eq!(beyond.kind, ErrorKind::NoSpace);
    assert!(beyond.message.contains("1099511627776"), "{beyond}");
}

#[tokio::test]
async fn what_is_no_image_is_said_to_be_none() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let mut cut = pattern_image(&bench, &client).await;
    cut.truncate(300);
    let mut flipped = pattern_image(&bench, &client).await;
    for at in [0x30, flipped.len() - 512 + 0x30] {
        flipped[at] ^= 0xff;
    }
    for (name, bytes) in [
        ("empty.vhd", vec![]),
        ("zeroes.vhd", vec![0; 4096]),
        ("cut.vhd", cut),
        ("flipped.vhd", flipped),
    ] {
        std::fs::write(bench.path(name), bytes).unwrap();
        let error = client
            .image_query(&rid(), Extent::Grows, bench.file(name))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{name}: {error}");
        let error = bench
            .try_open(&client, "d", &[name], datapath::Access::ReadWrite)
            .await;
        assert_eq!(error.unwrap_err().kind, ErrorKind::Corrupt, "{name}");
    }
    assert_eq!(client.list(&rid()).await.unwrap(), []);
}

async fn pattern_image(bench: &Bench, client: &datapath::Client) -> Vec<u8> {
    bench.create(client, "good.vhd", 4 * MIB, None).await;
    let bytes = std::fs::read(bench.path("good.vhd")).unwrap();
    std::fs::remove_file(bench.path("good.vhd")).unwrap();
    bytes
}

#[tokio::test]
async fn an_image_that_a_disk_has_is_not_changed_from_outside() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 8 * MIB, None).await;
    bench
        .create(&client, "b.vhd", 8 * MIB, Some(("a.vhd", base.uuid)))
        .await;
    bench.open(&client, "d", &["b.vhd", "a.vhd"]).await;
    for name in ["a.vhd", "b.vhd"] {
        let hide = client
            .image_hide(&rid(), true, Extent::Grows, bench.file(name))
            .await;
        assert_eq!(hide.unwrap_err().kind, ErrorKind::Busy, "{name}");
        let grow = client
            .image_resize(&rid(), 16 * MIB, Extent::Grows, bench.file(name))
            .await;
        assert_eq!(grow.unwrap_err().kind, ErrorKind::Busy, "{name}");
        client
            .image_query(&rid(), Extent::Grows, bench.file(name))
            .await
            .unwrap();
    }
}
