//! The bytes of XML-RPC and JSON-RPC, golden and hostile.

use crate::error::ApiError;
use crate::testing::map;
use crate::wire::{Malformed, jsonrpc, xmlrpc};
use database::{Ref, Value};

fn xml(value: &str) -> String {
    format!(
        "<methodCall><methodName>m</methodName><params><param>{value}</param></params></methodCall>"
    )
}

fn decoded(value: &str) -> Result<Value, Malformed> {
    xmlrpc::decode(xml(value).as_bytes()).map(|call| call.params[0].clone())
}

#[test]
fn xml_values_are_read_in_every_form_clients_use() {
    let set = |items: Vec<Value>| Value::Set(items);
    for (text, expected) in [
        ("<value>x</value>", Value::from("x")),
        ("<value/>", "".into()),
        ("<value></value>", "".into()),
        ("<value> x </value>", " x ".into()),
        ("<value><string> x </string></value>", " x ".into()),
        ("<value><string/></value>", "".into()),
        ("<value>\n  <string>x</string>\n</value>", "x".into()),
        ("<value>a&amp;b&lt;&#65;&#x42;</value>", "a&b<AB".into()),
        ("<value><![CDATA[<&>]]></value>", "<&>".into()),
        ("<value>a<!-- c -->b</value>", "ab".into()),
        ("<value><int>-3</int></value>", Value::Int(-3)),
        ("<value><i4>7</i4></value>", Value::Int(7)),
        ("<value><double>0.5</double></value>", Value::Float(0.5)),
        ("<value><boolean>1</boolean></value>", true.into()),
        (
            "<value><dateTime.iso8601>19700101T00:00:01Z</dateTime.iso8601></value>",
            Value::DateTime(1000),
        ),
        ("<value><nil/></value>", Value::Null),
        ("<value><array><data/></array></value>", set(vec![])),
        (
            "<value><array><data><value>a</value><value/></data></array></value>",
            set(vec!["a".into(), "".into()]),
        ),
        ("<value><struct/></value>", map([])),
        (
            "<value><struct><member><name>k</name><value><int>1</int></value></member></struct></value>",
            map([("k", Value::Int(1))]),
        ),
    ] {
        assert_eq!(decoded(text), Ok(expected), "{text}");
    }
}

#[test]
fn a_call_may_have_a_declaration_space_and_no_parameters() {
    for text in [
        "<?xml version='1.0'?>\n<methodCall>\n<methodName>a.b</methodName>\n<params>\n</params>\n</methodCall>\n",
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><methodCall><methodName>a.b</methodName></methodCall>",
        "<methodCall><methodName> a.b </methodName><params/></methodCall>",
    ] {
        let call = xmlrpc::decode(text.as_bytes()).unwrap();
        assert_eq!(
            (call.method.as_str(), call.params.len()),
            ("a.b", 0),
            "{text}"
        );
    }
}

#[test]
fn xml_that_is_no_call_is_refused() {
    let deep = "<value><array><data>".repeat(100_000);
    let many = format!(
        "<value><array><data>{}</data></array></value>",
        "<value/>".repeat(300_000)
    );
    let laughs = "<!DOCTYPE m [<!ENTITY a \"aaaa\">]>".to_owned() + &xml("<value>&a;</value>");
    let bad = [
        String::new(),
        "hello".to_owned(),
        "<methodCall>".to_owned(),
        "<methodCall/>".to_owned(),
        "<methodCall><methodName/></methodCall>".to_owned(),
        "<methodResponse/>".to_owned(),
        xml("<value>a</value>") + "<more/>",
        xml("<value>a</value><value>b</value>"),
        xml(""),
        xml("text"),
        xml("<value><int>x</int></value>"),
        xml("<value><int>9223372036854775808</int></value>"),
        xml("<value><boolean>2</boolean></value>"),
        xml("<value>a<int>1</int></value>"),
        xml("<value><int>1</int>a</value>"),
        xml("<value><colour>red</colour></value>"),
        xml("<value><struct><member><name>k</name></member></struct></value>"),
        xml("<value>&unknown;</value>"),
        xml("<value><int>1</value></int>"),
        laughs,
        deep.clone(),
        xml(&deep),
        many,
    ];
    for text in bad {
        assert!(
            xmlrpc::decode(text.as_bytes()).is_err(),
            "{}",
            &text[..text.len().min(200)]
        );
    }
    assert!(xmlrpc::decode(b"<methodCall><methodName>\xff</methodName></methodCall>").is_err());
    let deep = format!("{}<value/>", "<value><array><data>".repeat(70));
    assert_eq!(decoded(&deep), Err(Malformed::TooLarge("nested too deep")));
}

#[test]
fn xml_answers_are_compact_to_the_byte() {
    let value = map([
        ("bool", true.into()),
        ("empty", "".into()),
        ("float", Value::Float(0.5)),
        ("int", Value::Int(-42)),
        ("ref", Value::Ref(Ref::null())),
        ("set", Value::Set(vec!["<&>\r\u{1}".into()])),
        ("time", Value::DateTime(1000)),
        ("void", Value::Null),
    ]);
    let expected = concat!(
        "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>",
        "<member><name>Status</name><value>Success</value></member>",
        "<member><name>Value</name><value><struct>",
        "<member><name>bool</name><value><boolean>1</boolean></value></member>",
        "<member><name>empty</name><value/></member>",
        "<member><name>float</name><value><double>0.5</double></value></member>",
        "<member><name>int</name><value>-42</value></member>",
        "<member><name>ref</name><value>OpaqueRef:NULL</value></member>",
        "<member><name>set</name><value><array><data><value>&lt;&amp;&gt;&#13;\u{fffd}</value>",
        "</data></array></value></member>",
        "<member><name>time</name><value><dateTime.iso8601>19700101T00:00:01Z</dateTime.iso8601>",
        "</value></member>",
        "<member><name>void</name><value/></member>",
        "</struct></value></member></struct></value></param></params></methodResponse>"
    );
    assert_eq!(xmlrpc::encode(&Ok(value)), expected);
    let error = ApiError::new("UUID_INVALID", ["VM", "x"]);
    let expected = concat!(
        "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>",
        "<member><name>Status</name><value>Failure</value></member>",
        "<member><name>ErrorDescription</name><value><array><data><value>UUID_INVALID</value>",
        "<value>VM</value><value>x</value></data></array></value></member>",
        "</struct></value></param></params></methodResponse>"
    );
    assert_eq!(xmlrpc::encode(&Err(error)), expected);
}

#[test]
fn what_was_written_is_read_again() {
    let value = map([
        (
            "a",
            Value::Set(vec!["x\ty\nz\r".into(), map([("", Value::Float(-1e300))])]),
        ),
        ("b", Value::Bool(false)),
    ]);
    assert_eq!(decoded(&xmlrpc::encode_value(&value)), Ok(value));
}

#[test]
fn json_answers_follow_the_version_of_the_call() {
    let ok = Ok(map([
        ("n", Value::Int(1)),
        ("t", Value::DateTime(0)),
        ("v", Value::Null),
    ]));
    let error = Err(ApiError::new("UUID_INVALID", ["VM", "x"]));
    for (call, result, expected) in [
        (
            r#"{"jsonrpc":"2.0","method":"m","params":[],"id":1}"#,
            &ok,
            r#"{"id":1,"jsonrpc":"2.0","result":{"n":1,"t":"19700101T00:00:00Z","v":""}}"#,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"m","id":"a"}"#,
            &error,
            r#"{"error":{"code":1,"data":["VM","x"],"message":"UUID_INVALID"},"id":"a","jsonrpc":"2.0"}"#,
        ),
        (
            r#"{"method":"m","params":[],"id":[2]}"#,
            &ok,
            r#"{"error":null,"id":[2],"result":{"n":1,"t":"19700101T00:00:00Z","v":""}}"#,
        ),
        (
            r#"{"method":"m","params":[],"id":null}"#,
            &error,
            r#"{"error":["UUID_INVALID","VM","x"],"id":null,"result":null}"#,
        ),
    ] {
        let (envelope, _) = jsonrpc::decode(call.as_bytes()).unwrap();
        assert_eq!(jsonrpc::encode(&envelope, result), expected, "{call}");
    }
}

#[test]
fn json_values_are_read_as_they_are() {
    let text = r#"{"method":"m","params":[1,-0.5,true,null,"s",[1],{"k":"v"}]}"#;
    let (_, call) = jsonrpc::decode(text.as_bytes()).unwrap();
    let expected = [
        Value::Int(1),
        Value::Float(-0.5),
        true.into(),
        Value::Null,
        "s".into(),
        Value::Set(vec![Value::Int(1)]),
        map([("k", "v".into())]),
    ];
    assert_eq!(call.params, expected);
}

#[test]
fn json_that_is_no_call_is_refused() {
    let deep = format!(
        r#"{{"method":"m","params":[{}{}]}}"#,
        "[".repeat(100),
        "]".repeat(100)
    );
    let deeper = "[".repeat(100_000);
    let many = format!(r#"{{"method":"m","params":[{}1]}}"#, "1,".repeat(300_000));
    for text in [
        "",
        "null",
        "[]",
        r#"[{"method":"m"}]"#,
        r#"{"params":[]}"#,
        r#"{"method":3}"#,
        r#"{"method":"m","params":{"a":1}}"#,
        r#"{"jsonrpc":"3.0","method":"m"}"#,
        r#"{"method":"m"} {"#,
        &deep,
        &deeper,
        &many,
    ] {
        assert!(
            jsonrpc::decode(text.as_bytes()).is_err(),
            "{}",
            &text[..text.len().min(100)]
        );
    }
    let fault = jsonrpc::encode_fault(&Malformed::TooLarge("x"));
    assert_eq!(
        fault,
        r#"{"error":{"code":-32600,"message":"request is too large: x"},"id":null,"jsonrpc":"2.0"}"#
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        drop(xmlrpc::decode(&bytes));
        drop(jsonrpc::decode(&bytes));
    }

    #[test]
    fn every_text_survives_xml(text in "\\PC*") {
        let value = Value::String(text.clone());
        proptest::prop_assert_eq!(decoded(&xmlrpc::encode_value(&value)), Ok(value));
    }
}
