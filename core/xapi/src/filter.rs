//! The expressions of `get_all_records_where`.
//!
//! `field "name" = "value"`, `not`, `and`, `or`, `true`, `false` and parentheses; `not` binds
//! closest, `or` least. Values are compared as texts, the way XML-RPC shows them.

use database::Value;

const DEPTH_MAX: usize = 64;
const TOKENS_MAX: usize = 4096;

/// A condition on a record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    /// Holds always, or never.
    Constant(bool),
    /// A field has this text.
    Equals(String, String),
    /// The inner one does not hold.
    Not(Box<Filter>),
    /// All hold.
    And(Vec<Filter>),
    /// One holds.
    Or(Vec<Filter>),
}

impl Filter {
    /// Reads an expression; `None` when it is none.
    pub(crate) fn parse(text: &str) -> Option<Filter> {
        let tokens = tokens(text)?;
        let mut parser = Parser { tokens: &tokens };
        let filter = parser.or(0)?;
        parser.tokens.is_empty().then_some(filter)
    }

    /// Says whether a record, given by its fields, passes.
    pub(crate) fn passes(&self, field: &impl Fn(&str) -> Option<Value>) -> bool {
        match self {
            Filter::Constant(truth) => *truth,
            Filter::Equals(name, expected) => {
                field(name).is_some_and(|value| text_of(&value).as_deref() == Some(expected))
            }
            Filter::Not(inner) => !inner.passes(field),
            Filter::And(all) => all.iter().all(|inner| inner.passes(field)),
            Filter::Or(any) => any.iter().any(|inner| inner.passes(field)),
        }
    }
}

fn text_of(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.clone(),
        Value::Ref(reference) => reference.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::DateTime(ms) => crate::datetime::format(*ms),
        Value::Null | Value::Set(_) | Value::Map(_) | Value::Record(_) => return None,
    })
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        if found.len() >= TOKENS_MAX {
            return None;
        }
        match first {
            _ if first.is_whitespace() => {}
            '(' | ')' | '=' => found.push(Token::Sign(first)),
            '"' => {
                let mut text = String::new();
                loop {
                    match rest.next()? {
                        '"' => break,
                        '\\' => text.push(rest.next()?),
                        other => text.push(other),
                    }
                }
                found.push(Token::Text(text));
            }
            _ if first.is_alphabetic() => {
                let mut word = String::from(first);
                while let Some(next) = rest.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    word.push(next);
                }
                found.push(Token::Word(word.to_ascii_lowercase()));
            }
            _ => return None,
        }
    }
    Some(found)
}

struct Parser<'a> {
    tokens: &'a [Token],
}

impl Parser<'_> {
    fn next(&mut self) -> Option<&Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn eat(&mut self, word: &str) -> bool {
        match self.tokens.split_first() {
            Some((Token::Word(found), rest)) if found == word => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn or(&mut self, depth: usize) -> Option<Filter> {
        let mut any = vec![self.and(depth)?];
        while self.eat("or") {
            any.push(self.and(depth)?);
        }
        if any.len() == 1 {
            any.pop()
        } else {
            Some(Filter::Or(any))
        }
    }

    fn and(&mut self, depth: usize) -> Option<Filter> {
        let mut all = vec![self.one(depth)?];
        while self.eat("and") {
            all.push(self.one(depth)?);
        }
        if all.len() == 1 {
            all.pop()
        } else {
            Some(Filter::And(all))
        }
    }

    fn one(&mut self, depth: usize) -> Option<Filter> {
        if depth >= DEPTH_MAX {
            return None;
        }
        let deeper = depth.saturating_add(1);
        match self.next()?.clone() {
            Token::Word(word) => match word.as_str() {
                "true" => Some(Filter::Constant(true)),
                "false" => Some(Filter::Constant(false)),
                "not" => Some(Filter::Not(Box::new(self.one(deeper)?))),
                "field" => {
                    let Token::Text(name) = self.next()?.clone() else {
                        return None;
                    };
                    let Token::Sign('=') = self.next()? else {
                        return None;
                    };
                    let Token::Text(value) = self.next()?.clone() else {
                        return None;
                    };
                    Some(Filter::Equals(name, value))
                }
                _ => None,
            },
            Token::Sign('(') => {
                let inner = self.or(deeper)?;
                let Token::Sign(')') = self.next()? else {
                    return None;
                };
                Some(inner)
            }
            Token::Sign(_) | Token::Text(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Option<Value> {
        match name {
            "name__label" | "name_label" => Some(Value::from("a \"b\"")),
            "size" => Some(Value::Int(7)),
            "read_only" => Some(Value::Bool(false)),
            "tags" => Some(Value::Set(vec![])),
            _ => None,
        }
    }

    #[test]
    fn expressions_mean_what_they_say() {
        for (text, expected) in [
            (r#"true"#, true),
            (r#"field "size" = "7""#, true),
            (r#"field "size" = "07""#, false),
            (r#"field "read_only" = "false""#, true),
            (r#"field "name_label" = "a \"b\"""#, true),
            (r#"field "nothing" = "x""#, false),
            (r#"field "tags" = """#, false),
            (
                r#"not field "size" = "8" and field "read_only"="false""#,
                true,
            ),
            (r#"false and false or true"#, true),
            (r#"false and (false or true)"#, false),
            (r#"not (true and NOT false)"#, false),
        ] {
            let filter = Filter::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(filter.passes(&record), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        let deep = "(".repeat(100_000);
        let nots = "not ".repeat(3000) + "true";
        for text in [
            "",
            "true true",
            "field",
            r#"field "a" "b""#,
            r#"field "a" = "b"#,
            "(true",
            &deep,
            &nots,
            "1",
            "and",
            "maybe",
        ] {
            assert_eq!(Filter::parse(text), None, "{}", &text[..text.len().min(40)]);
        }
    }
}
