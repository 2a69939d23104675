//! Options: what each one means and the bytes of its reply.

use super::reply::ALLOCATION_CONTEXT;
use super::request::{Agreed, MINIMUM_BYTES, PREFERRED_BYTES, REQUEST_BYTES_MAX, Style};
use super::{Export, Tls};
use datapath::nbd::wire;

/// Longest option taken: a name of 4096 bytes and room for its requests and queries.
pub(super) const OPTION_BYTES_MAX: usize = 16 << 10;

/// Most options of one session; real clients need five.
pub(super) const OPTIONS_MAX: u32 = 64;

/// Most queries or information requests in one option.
const ITEMS_MAX: u32 = 128;

/// What happens after an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More options.
    Option,
    /// Requests.
    Transmission,
    /// The session ends once the reply is sent.
    End,
    /// TLS from the next byte on; nothing that was settled in the clear counts.
    StartTls,
    /// The session ends at once: this option has no reply that could say why.
    Drop,
}

/// An error reply: its type and a text for people.
type Refusal = (u32, &'static str);

const CUT_OFF: Refusal = (wire::REP_ERR_INVALID, "the option is cut off");
const TRAILING: Refusal = (
    wire::REP_ERR_INVALID,
    "the option is longer than its content",
);
const TLS_FIRST: Refusal = (wire::REP_ERR_TLS_REQD, "this export is served under TLS");
const NO_EXPORT: Refusal = (wire::REP_ERR_UNKNOWN, "no such export");

/// The server's first bytes.
pub(super) fn greeting() -> Vec<u8> {
    let flags = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
    let mut bytes = wire::GREETING_MAGIC.to_be_bytes().to_vec();
    bytes.extend(wire::OPTION_MAGIC.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

/// The reply to an option that breaks a limit; the session ends after it.
pub(super) fn too_big(option: u32, why: &str) -> Vec<u8> {
    let mut reply = Vec::new();
    push(&mut reply, option, wire::REP_ERR_TOO_BIG, why.as_bytes());
    reply
}

/// Takes one option, settles it in `agreed` and appends its reply to `out`.
pub(super) fn option(
    export: &Export,
    agreed: &mut Agreed,
    option: u32,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Next {
    // Whoever is not told that there are replies to options cannot read one.
    if !agreed.fixed && option != wire::OPT_EXPORT_NAME {
        return Next::Drop;
    }
    let in_the_clear = export.tls.as_ref().is_some_and(Tls::is_required) && !agreed.secured;
    let (result, after) = match option {
        wire::OPT_STARTTLS => (start_tls(export, *agreed, data), Next::StartTls),
        wire::OPT_EXPORT_NAME if in_the_clear => return Next::Drop,
        // Whoever wants to leave is let go, as the specification has it for every state.
        _ if in_the_clear && option != wire::OPT_ABORT => (Err(TLS_FIRST), Next::Option),
        wire::OPT_EXPORT_NAME => return export_name(export, *agreed, data, out),
        wire::OPT_ABORT => (Ok(()), Next::End),
        wire::OPT_LIST => (list(export, data, out), Next::Option),
        wire::OPT_INFO => (describe(export, *agreed, option, data, out), Next::Option),
        wire::OPT_GO => (
            describe(export, *agreed, option, data, out),
            Next::Transmission,
        ),
        wire::OPT_STRUCTURED_REPLY => (structured_reply(agreed, data), Next::Option),
        wire::OPT_EXTENDED_HEADERS => (extended_headers(agreed, data), Next::Option),
        wire::OPT_LIST_META_CONTEXT => (list_contexts(export, *agreed, data, out), Next::Option),
        wire::OPT_SET_META_CONTEXT => (set_contexts(export, agreed, data, out), Next::Option),
        _ => (Err((wire::REP_ERR_UNSUP, "unknown option")), Next::Option),
    };
    match result {
        Ok(()) => {
            push(out, option, wire::REP_ACK, &[]);
            after
        }
        Err((kind, why)) => {
            push(out, option, kind, why.as_bytes());
            Next::Option
        }
    }
}

fn export_name(export: &Export, agreed: Agreed, data: &[u8], out: &mut Vec<u8>) -> Next {
    // Extended headers and this option exclude each other, and it has no error to say so.
    if !is_named(export, data) || agreed.style == Style::Extended {
        return Next::Drop;
    }
    out.extend(export.size_bytes.to_be_bytes());
    out.extend(export_flags(export, agreed).to_be_bytes());
    if !agreed.no_zeroes {
        out.extend([0; 124]);
    }
    Next::Transmission
}

fn start_tls(export: &Export, agreed: Agreed, data: &[u8]) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(TRAILING);
    }
    if agreed.secured {
        return Err((wire::REP_ERR_INVALID, "TLS is there already"));
    }
    if export.tls.is_none() {
        return Err((wire::REP_ERR_POLICY, "this export is served without TLS"));
    }
    Ok(())
}

fn structured_reply(agreed: &mut Agreed, data: &[u8]) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(TRAILING);
    }
    if agreed.style == Style::Extended {
        return Err((
            wire::REP_ERR_EXT_HEADER_REQD,
            "extended headers were chosen already",
        ));
    }
    agreed.style = Style::Structured;
    Ok(())
}

fn extended_headers(agreed: &mut Agreed, data: &[u8]) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(TRAILING);
    }
    agreed.style = Style::Extended;
    Ok(())
}

fn list(export: &Export, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(TRAILING);
    }
    let length = u32::try_from(export.name.len()).map_err(|_| NO_EXPORT)?;
    let body = [&length.to_be_bytes()[..], export.name.as_bytes()].concat();
    push(out, wire::OPT_LIST, wire::REP_SERVER, &body);
    Ok(())
}

/// `INFO` and `GO`. Block sizes are told unasked: a client that ignores them learns by `EINVAL`.
fn describe(
    export: &Export,
    agreed: Agreed,
    option: u32,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    if u32::from(count) > ITEMS_MAX {
        return Err((wire::REP_ERR_TOO_BIG, "too many information requests"));
    }
    let mut wants_name = false;
    for _ in 0..count {
        wants_name |= fields.u16()? == wire::INFO_NAME;
    }
    fields.end()?;
    if !is_named(export, name) {
        return Err(NO_EXPORT);
    }
    let mut size = wire::INFO_EXPORT.to_be_bytes().to_vec();
    size.extend(export.size_bytes.to_be_bytes());
    size.extend(export_flags(export, agreed).to_be_bytes());
    push(out, option, wire::REP_INFO, &size);
    let mut blocks = wire::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for bytes in [MINIMUM_BYTES, PREFERRED_BYTES, REQUEST_BYTES_MAX] {
        blocks.extend(bytes.to_be_bytes());
    }
    push(out, option, wire::REP_INFO, &blocks);
    if wants_name {
        let body = [&wire::INFO_NAME.to_be_bytes()[..], export.name.as_bytes()].concat();
        push(out, option, wire::REP_INFO, &body);
    }
    Ok(())
}

fn list_contexts(
    export: &Export,
    agreed: Agreed,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let queries = contexts(export, agreed, data)?;
    if queries.is_empty()
        || queries
            .iter()
            .any(|q| [&b"base:"[..], ALLOCATION].contains(q))
    {
        push_context(out, wire::OPT_LIST_META_CONTEXT, 0);
    }
    Ok(())
}

fn set_contexts(
    export: &Export,
    agreed: &mut Agreed,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    // Whatever comes of it, the choice before is void.
    agreed.allocation = false;
    let queries = contexts(export, *agreed, data)?;
    agreed.allocation = queries.contains(&ALLOCATION);
    if agreed.allocation {
        push_context(out, wire::OPT_SET_META_CONTEXT, ALLOCATION_CONTEXT);
    }
    Ok(())
}

const ALLOCATION: &[u8] = wire::BASE_ALLOCATION.as_bytes();

/// The queries of a metadata context option for this export.
fn contexts<'d>(export: &Export, agreed: Agreed, data: &'d [u8]) -> Result<Vec<&'d [u8]>, Refusal> {
    if agreed.style < Style::Structured {
        return Err((wire::REP_ERR_INVALID, "structured replies come first"));
    }
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    if count > ITEMS_MAX {
        return Err((wire::REP_ERR_TOO_BIG, "too many queries"));
    }
    let queries = (0..count)
        .map(|_| fields.string())
        .collect::<Result<Vec<_>, _>>()?;
    fields.end()?;
    if is_named(export, name) {
        Ok(queries)
    } else {
        Err(NO_EXPORT)
    }
}

fn push_context(out: &mut Vec<u8>, option: u32, id: u32) {
    let body = [&id.to_be_bytes()[..], ALLOCATION].concat();
    push(out, option, wire::REP_META_CONTEXT, &body);
}

fn push(out: &mut Vec<u8>, option: u32, kind: u32, body: &[u8]) {
    let length = u32::try_from(body.len()).expect("replies are short");
    out.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(body);
}

fn is_named(export: &Export, name: &[u8]) -> bool {
    name.is_empty() || name == export.name.as_bytes()
}

fn export_flags(export: &Export, agreed: Agreed) -> u16 {
    let mut flags = wire::EXPORT_HAS_FLAGS
        | wire::EXPORT_SEND_FLUSH
        | wire::EXPORT_SEND_FUA
        | wire::EXPORT_SEND_CACHE
        | wire::EXPORT_CAN_MULTI_CONN;
    flags |= if export.read_only {
        wire::EXPORT_READ_ONLY
    } else {
        wire::EXPORT_SEND_TRIM | wire::EXPORT_SEND_WRITE_ZEROES | wire::EXPORT_SEND_FAST_ZERO
    };
    if agreed.style >= Style::Structured {
        flags |= wire::EXPORT_SEND_DF;
    }
    flags
}

/// Fields of an option, taken from the front.
struct Fields<'d>(&'d [u8]);

impl<'d> Fields<'d> {
    fn u16(&mut self) -> Result<u16, Refusal> {
        let (field, rest) = self.0.split_first_chunk().ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*field))
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        let (field, rest) = self.0.split_first_chunk().ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*field))
    }

    fn string(&mut self) -> Result<&'d [u8], Refusal> {
        let length = self.u32()? as usize;
        if length > wire::STRING_BYTES_MAX {
            return Err((wire::REP_ERR_TOO_BIG, "a string over 4096 bytes"));
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(text)
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(TRAILING)
        }
    }
}
