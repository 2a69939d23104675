//! XML-RPC as XenAPI clients speak it.
//!
//! Compact: nothing between tags, strings bare, 64-bit integers as strings. What comes in may use
//! any form the protocol knows. Document types and entities of one's own are refused.

use super::{DEPTH_MAX, Malformed, Request, VALUES_MAX};
use crate::datetime;
use crate::error::ApiError;
use database::Value;
use quick_xml::Reader;
use quick_xml::events::Event;
use std::collections::BTreeMap;

/// Reads a `methodCall`.
///
/// # Errors
/// [`Malformed`] for anything else, and beyond the limits on depth and number of values.
pub fn decode(body: &[u8]) -> Result<Request, Malformed> {
    let text = std::str::from_utf8(body).map_err(|_| syntax("the text is not UTF-8"))?;
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut parser = Parser { reader, values: 0 };
    parser.expect_start("methodCall")?;
    parser.expect_start("methodName")?;
    let method = parser.text_until("methodName")?.trim().to_owned();
    let mut params = Vec::new();
    match parser.tag()? {
        Tag::Start("params") => {
            while parser.another("param", "params")? {
                parser.expect_start("value")?;
                params.push(parser.value(0)?);
                parser.expect_end("param")?;
            }
            parser.expect_end("methodCall")?;
        }
        Tag::End("methodCall") => {}
        other => return Err(unexpected(&other)),
    }
    match parser.tag()? {
        Tag::EndOfText if method.is_empty() => Err(syntax("a call without a method")),
        Tag::EndOfText => Ok(Request { method, params }),
        other => Err(unexpected(&other)),
    }
}

/// Writes a `methodResponse` with the `Status` record of XenAPI.
pub fn encode(result: &Result<Value, ApiError>) -> String {
    let mut out = String::with_capacity(256);
    out.push_str("<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>");
    let (status, name) = match result {
        Ok(_) => ("Success", "Value"),
        Err(_) => ("Failure", "ErrorDescription"),
    };
    out.push_str("<member><name>Status</name><value>");
    out.push_str(status);
    out.push_str("</value></member><member><name>");
    out.push_str(name);
    out.push_str("</name>");
    match result {
        Ok(value) => write_value(value, &mut out),
        Err(error) => {
            let list = error.to_list().into_iter().map(Value::String).collect();
            write_value(&Value::Set(list), &mut out);
        }
    }
    out.push_str("</member></struct></value></param></params></methodResponse>");
    out
}

/// Writes a `fault`, for bytes that were no call.
pub fn encode_fault(fault: &Malformed) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><fault><value><struct>");
    out.push_str("<member><name>faultCode</name><value><int>");
    out.push_str(&fault.fault_code().to_string());
    out.push_str("</int></value></member><member><name>faultString</name><value>");
    escape_into(&fault.to_string(), &mut out);
    out.push_str("</value></member></struct></value></fault></methodResponse>");
    out
}

/// Writes one value, `<value>..</value>`, as a task's result has it.
pub fn encode_value(value: &Value) -> String {
    let mut out = String::new();
    write_value(value, &mut out);
    out
}

fn write_value(value: &Value, out: &mut String) {
    let text = |tag: &str, text: &str, out: &mut String| {
        out.push_str("<value>");
        for part in ["<", tag, ">", text, "</", tag, ">"] {
            out.push_str(part);
        }
        out.push_str("</value>");
    };
    match value {
        Value::Null => out.push_str("<value/>"),
        Value::String(string) => write_string(string, out),
        Value::Ref(reference) => write_string(reference.as_str(), out),
        Value::Int(number) => write_string(&number.to_string(), out),
        Value::Float(number) => text("double", &number.to_string(), out),
        Value::Bool(truth) => text("boolean", if *truth { "1" } else { "0" }, out),
        Value::DateTime(ms) => text("dateTime.iso8601", &datetime::format(*ms), out),
        Value::Set(items) => {
            out.push_str("<value><array><data>");
            items.iter().for_each(|item| write_value(item, out));
            out.push_str("</data></array></value>");
        }
        Value::Map(entries) | Value::Record(entries) => {
            out.push_str("<value><struct>");
            for (name, item) in entries {
                out.push_str("<member><name>");
                escape_into(name, out);
                out.push_str("</name>");
                write_value(item, out);
                out.push_str("</member>");
            }
            out.push_str("</struct></value>");
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    if text.is_empty() {
        out.push_str("<value/>");
        return;
    }
    out.push_str("<value>");
    escape_into(text, out);
    out.push_str("</value>");
}

/// Escapes markup; a character that XML 1.0 cannot hold becomes U+FFFD, because one of them in
/// one name would make every client's `get_all_records` fail.
fn escape_into(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(character),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(character),
        }
    }
}

fn syntax(what: impl Into<String>) -> Malformed {
    Malformed::Syntax(what.into())
}

fn unexpected(tag: &Tag) -> Malformed {
    syntax(match tag {
        Tag::Start(name) => format!("unexpected <{name}>"),
        Tag::End(name) => format!("unexpected </{name}>"),
        Tag::EndOfText => "the text ends early".to_owned(),
    })
}

/// The elements of the protocol.
const ELEMENTS: [&str; 19] = [
    "methodCall",
    "methodName",
    "params",
    "param",
    "value",
    "array",
    "data",
    "struct",
    "member",
    "name",
    "string",
    "int",
    "i4",
    "i8",
    "double",
    "boolean",
    "dateTime.iso8601",
    "base64",
    "nil",
];

fn element(name: &str) -> Result<&'static str, Malformed> {
    let found = ELEMENTS.into_iter().find(|known| *known == name);
    found.ok_or_else(|| {
        syntax(format!(
            "unknown element {:?}",
            name.chars().take(40).collect::<String>()
        ))
    })
}

/// What stands at a place where only tags may stand.
enum Tag {
    Start(&'static str),
    End(&'static str),
    EndOfText,
}

/// A piece of markup or text, entities resolved.
enum Piece {
    Tag(Tag),
    Text(String),
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
    values: usize,
}

impl Parser<'_> {
    fn piece(&mut self) -> Result<Piece, Malformed> {
        loop {
            let event = self
                .reader
                .read_event()
                .map_err(|error| syntax(error.to_string()))?;
            return Ok(match event {
                Event::Start(tag) | Event::Empty(tag) => {
                    Piece::Tag(Tag::Start(element(tag.name().as_ref())?))
                }
                Event::End(tag) => Piece::Tag(Tag::End(element(tag.name().as_ref())?)),
                Event::Eof => Piece::Tag(Tag::EndOfText),
                Event::Text(text) => Piece::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Piece::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(name) => {
                    let character = name.resolve_char_ref().map_err(|e| syntax(e.to_string()))?;
                    Piece::Text(match character {
                        Some(character) => character.to_string(),
                        None => quick_xml::escape::resolve_predefined_entity(&name)
                            .ok_or_else(|| syntax("an unknown entity"))?
                            .to_owned(),
                    })
                }
                Event::DocType(_) => return Err(syntax("a document type is not taken")),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => continue,
            });
        }
    }

    /// Reads the next tag, over white space.
    fn tag(&mut self) -> Result<Tag, Malformed> {
        loop {
            match self.piece()? {
                Piece::Tag(tag) => return Ok(tag),
                Piece::Text(text) if text.trim().is_empty() => {}
                Piece::Text(_) => return Err(syntax("text between tags")),
            }
        }
    }

    fn expect_start(&mut self, name: &str) -> Result<(), Malformed> {
        match self.tag()? {
            Tag::Start(found) if found == name => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn expect_end(&mut self, name: &str) -> Result<(), Malformed> {
        match self.tag()? {
            Tag::End(found) if found == name => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads either the start of one more `item` or the end of `list`.
    fn another(&mut self, item: &str, list: &str) -> Result<bool, Malformed> {
        match self.tag()? {
            Tag::Start(found) if found == item => Ok(true),
            Tag::End(found) if found == list => Ok(false),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads text up to the end of element `name`.
    fn text_until(&mut self, name: &str) -> Result<String, Malformed> {
        let mut all = String::new();
        loop {
            match self.piece()? {
                Piece::Text(text) => all.push_str(&text),
                Piece::Tag(Tag::End(found)) if found == name => return Ok(all),
                Piece::Tag(other) => return Err(unexpected(&other)),
            }
        }
    }

    /// Reads the rest of a value whose `<value>` has been read, `</value>` included.
    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth >= DEPTH_MAX {
            return Err(Malformed::TooLarge("nested too deep"));
        }
        self.values = self.values.saturating_add(1);
        if self.values > VALUES_MAX {
            return Err(Malformed::TooLarge("too many values"));
        }
        let mut bare = String::new();
        let value = loop {
            match self.piece()? {
                Piece::Text(text) => bare.push_str(&text),
                Piece::Tag(Tag::End("value")) => return Ok(Value::String(bare)),
                Piece::Tag(Tag::Start(kind)) if bare.trim().is_empty() => {
                    break self.typed(kind, depth)?;
                }
                Piece::Tag(other) => return Err(unexpected(&other)),
            }
        };
        self.expect_end("value")?;
        Ok(value)
    }

    fn typed(&mut self, kind: &str, depth: usize) -> Result<Value, Malformed> {
        match kind {
            "array" => return self.array(depth),
            "struct" => return self.members(depth),
            _ => {}
        }
        let text = self.text_until(kind)?;
        let word = text.trim();
        let bad = || {
            syntax(format!(
                "{:?} is no {kind}",
                word.chars().take(40).collect::<String>()
            ))
        };
        Ok(match kind {
            // No parameter of the interface is binary; as text it gets the type error it deserves.
            "string" | "base64" => Value::String(text),
            "int" | "i4" | "i8" => Value::Int(word.parse().map_err(|_| bad())?),
            "double" => Value::Float(word.parse().map_err(|_| bad())?),
            "boolean" => match word {
                "1" | "true" => Value::Bool(true),
                "0" | "false" => Value::Bool(false),
                _ => return Err(bad()),
            },
            "dateTime.iso8601" => Value::DateTime(datetime::parse(word).ok_or_else(bad)?),
            "nil" if word.is_empty() => Value::Null,
            _ => return Err(syntax(format!("unexpected <{kind}>"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut items = Vec::new();
        self.expect_start("data")?;
        while self.another("value", "data")? {
            items.push(self.value(depth.saturating_add(1))?);
        }
        self.expect_end("array")?;
        Ok(Value::Set(items))
    }

    fn members(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut entries = BTreeMap::new();
        while self.another("member", "struct")? {
            self.expect_start("name")?;
            let name = self.text_until("name")?;
            self.expect_start("value")?;
            entries.insert(name, self.value(depth.saturating_add(1))?);
            self.expect_end("member")?;
        }
        Ok(Value::Map(entries))
    }
}
