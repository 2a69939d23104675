//! Lists, parameters, filters: what scripts parse.

use crate::testing::Host;
use database::{Ref, Value};
use std::collections::BTreeMap;

const VDI: &str = "00000000-0000-4000-8000-00000000000d";

/// An SR with a disk and one without.
async fn storage(host: &Host) -> (Ref, Ref) {
    let map = |entries: &[(&str, &str)]| {
        let entries = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
        Value::Map(entries.collect::<BTreeMap<_, _>>())
    };
    let sr = host
        .put(
            "SR",
            &[
                ("uuid", "00000000-0000-4000-8000-000000000001".into()),
                ("name_label", "Local, slow".into()),
                ("type", "file".into()),
                ("other_config", map(&[("b", "2"), ("a", "1,5")])),
            ],
        )
        .await;
    host.put(
        "SR",
        &[
            ("uuid", "00000000-0000-4000-8000-000000000002".into()),
            ("type", "iso".into()),
        ],
    )
    .await;
    let vdi = host
        .put(
            "VDI",
            &[
                ("uuid", VDI.into()),
                ("name_label", "disk".into()),
                ("SR", (&sr).into()),
                ("type", "user".into()),
                ("virtual_size", Value::Int(1 << 30)),
                ("tags", Value::Set(vec!["red".into(), "blue".into()])),
                ("current_operations", map(&[("OpaqueRef:t", "copy")])),
            ],
        )
        .await;
    (sr, vdi)
}

#[tokio::test]
async fn a_list_is_laid_out_as_scripts_expect_it() {
    let host = Host::new().await;
    storage(&host).await;
    let expected = "\
uuid ( RO)                : 00000000-0000-4000-8000-00000000000d
          name-label ( RW): disk
    name-description ( RW): 
             sr-uuid ( RO): 00000000-0000-4000-8000-000000000001
        virtual-size ( RO): 1073741824
            sharable ( RW): false
           read-only ( RW): false


";
    assert_eq!(host.xe(&["vdi-list"]).await.out, expected);
    let seen = host
        .xe(&[
            "vdi-list",
            "params=type,sr-name-label,current-operations,tags",
        ])
        .await;
    let expected = "\
current-operations (SRO)    : copy
         sr-name-label ( RO): Local, slow
                  type ( RO): User
                  tags (SRW): red; blue


";
    assert_eq!(seen.out, expected);
}

#[tokio::test]
async fn minimal_lists_have_commas_between_and_backslashes_before_commas_inside() {
    let host = Host::new().await;
    storage(&host).await;
    let line = async |args: &'static [&'static str]| host.xe(args).await.line();
    assert_eq!(
        line(&["sr-list", "--minimal", "params=name-label", "type=file"]).await,
        r"Local\, slow"
    );
    assert_eq!(
        line(&["sr-list", "--minimal", "params=type"]).await,
        "iso,file"
    );
    assert_eq!(line(&["vbd-list", "--minimal"]).await, "");
    assert_eq!(
        line(&["vdi-list", "--minimal", "params=name-label,uuid"]).await,
        VDI
    );
}

#[tokio::test]
async fn conditions_are_on_fields_entries_of_maps_and_members_of_sets() {
    let host = Host::new().await;
    storage(&host).await;
    for (args, count) in [
        (&["sr-list"][..], 2),
        (&["sr-list", "type=file"], 1),
        (&["sr-list", "type=file", "shared=true"], 0),
        (&["sr-list", "other-config:a=1,5"], 1),
        (&["sr-list", "other-config:a=1"], 0),
        (&["vdi-list", "tags:contains=red"], 1),
        (&["vdi-list", "tags:contains=green"], 0),
        (&["vdi-list", "sr-name-label=Local, slow"], 1),
        (&["vdi-list", "database:vdi-uuid=x"], 1),
        (&["vdi-list", "type=User"], 1),
    ] {
        let seen = host.xe(args).await;
        assert_eq!(
            (seen.out.matches("uuid ( RO)  ").count(), seen.code),
            (count, 0),
            "{args:?}\n{seen:?}"
        );
    }
}

#[tokio::test]
async fn fields_are_read_set_added_to_removed_from_and_cleared() {
    let host = Host::new().await;
    storage(&host).await;
    let get = async |field: &str, key: Option<&str>| {
        let mut args = vec![
            "vdi-param-get".to_owned(),
            format!("uuid={VDI}"),
            format!("param-name={field}"),
        ];
        args.extend(key.map(|key| format!("param-key={key}")));
        host.xe(&args.iter().map(String::as_str).collect::<Vec<_>>())
            .await
    };
    let change = async |command: &str, rest: &[&str]| {
        let uuid = format!("uuid={VDI}");
        let seen = host.xe(&[&[command, &uuid], rest].concat()).await;
        assert_eq!(
            (seen.code, seen.out.as_str()),
            (if seen.err.is_empty() { 0 } else { 1 }, "")
        );
        seen.err
    };
    assert_eq!(get("virtual-size", None).await.line(), "1073741824");
    assert_eq!(
        change(
            "vdi-param-set",
            &["other-config:a=1", "other-config:b=x y=z"]
        )
        .await,
        ""
    );
    assert_eq!(get("other-config", None).await.line(), "a: 1; b: x y=z");
    assert_eq!(change("vdi-param-set", &["other-config:a=2"]).await, "");
    assert_eq!(get("other-config", Some("a")).await.line(), "2");
    assert_eq!(
        change("vdi-param-add", &["param-name=tags", "param-key=green"]).await,
        ""
    );
    assert_eq!(
        change("vdi-param-remove", &["param-name=tags", "param-key=red"]).await,
        ""
    );
    assert_eq!(get("tags", None).await.line(), "blue; green");
    assert_eq!(
        change("vdi-param-add", &["param-name=other-config", "c=3"]).await,
        ""
    );
    assert_eq!(
        change(
            "vdi-param-remove",
            &["param-name=other-config", "param-key=a"]
        )
        .await,
        ""
    );
    assert_eq!(get("other-config", None).await.line(), "b: x y=z; c: 3");
    assert_eq!(
        change("vdi-param-clear", &["param-name=other-config"]).await,
        ""
    );
    assert_eq!(get("other-config", None).await.line(), "");
    for (command, rest, problem) in [
        (
            "vdi-param-set",
            &["virtual-size=1"][..],
            "Error: Field 'virtual-size' is read-only.\n",
        ),
        (
            "vdi-param-set",
            &["tags=x"],
            "Error: Field 'tags' is a set: use param-add and param-remove.\n",
        ),
        (
            "vdi-param-set",
            &["other-config=x"],
            "Error: Field 'other-config' is a map: use 'other-config:key=value'.\n",
        ),
        (
            "vdi-param-remove",
            &["param-name=tags", "param-key=red"],
            "Error: Key red is not in the set\n",
        ),
        (
            "vdi-param-add",
            &["param-name=name-label", "param-key=x"],
            "Error: Cannot add to 'name-label': it is no set or map.\n",
        ),
        (
            "vdi-param-clear",
            &["param-name=uuid"],
            "Error: Field 'uuid' is read-only.\n",
        ),
        (
            "vdi-param-set",
            &["sharable=maybe"],
            "Error: Failed to parse parameter 'sharable': expecting a boolean (true or false)\n",
        ),
    ] {
        assert_eq!(change(command, rest).await, problem, "{command} {rest:?}");
    }
    assert_eq!(
        get("other-config", Some("a")).await.err,
        "Error: Key a is not in the map\n"
    );
    let all = host.xe(&["vdi-param-list", &format!("uuid={VDI}")]).await;
    assert!(
        all.out.starts_with("uuid ( RO)") && all.out.contains(" vbd-uuids (SRO): \n"),
        "{}",
        all.out
    );
}

#[tokio::test]
async fn references_are_set_by_uuid_and_shown_by_uuid_and_name() {
    let host = Host::new().await;
    let (sr, _) = storage(&host).await;
    let pool = host.xe(&["pool-list", "--minimal"]).await.line();
    let sr_uuid = host
        .api
        .snapshot()
        .row("SR", &sr)
        .unwrap()
        .uuid()
        .to_owned();
    let (uuid, value) = (format!("uuid={pool}"), format!("default-SR={sr_uuid}"));
    assert_eq!(host.xe(&["pool-param-set", &uuid, &value]).await.err, "");
    assert_eq!(
        host.xe(&["pool-list", "params=default-SR", "--minimal"])
            .await
            .line(),
        sr_uuid
    );
    let seen = host.xe(&["pool-param-set", &uuid, "default-SR=none"]).await;
    assert_eq!(
        seen.err,
        "The uuid you supplied was invalid.\ntype: SR\nuuid: none\n"
    );
}

#[tokio::test]
async fn snapshots_templates_and_vms_are_kept_apart_until_asked_for() {
    let host = Host::new().await;
    for (name, template, snapshot) in [("vm", false, false), ("t", true, false), ("s", true, true)]
    {
        let fields = [
            ("uuid", name.into()),
            ("name_label", name.into()),
            ("is_a_template", template.into()),
            ("is_a_snapshot", snapshot.into()),
        ];
        host.put("VM", &fields).await;
    }
    for (args, names) in [
        (&["vm-list"][..], "vm"),
        (&["template-list"], "t"),
        (&["snapshot-list"], "s"),
        (&["vm-list", "is-a-template=true"], "s,t"),
        (&["template-list", "is-a-snapshot=true"], "s"),
    ] {
        let args = [
            args,
            &["params=name-label", "--minimal", "is-control-domain=false"],
        ]
        .concat();
        assert_eq!(host.xe(&args).await.line(), names, "{args:?}");
    }
}
