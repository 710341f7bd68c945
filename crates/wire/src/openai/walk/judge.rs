//! The leaves of the walk: whether one value has the type and range that its member wants, and how a fault names
//! its place. It writes nothing. Called by `walk`.

use super::{Step, Walk};
use crate::json::{Kind, Value};
use crate::openai::BodyFault;
use crate::openai::bound::text_bound;
use std::fmt::Write as _;

/// Entries of `logit_bias` and of `metadata`.
const ENTRIES_MAX: usize = 4096;

impl Walk<'_> {
    pub(super) fn want(&self, value: Value<'_>, kind: Kind, what: &str) -> Result<(), BodyFault> {
        if value.kind() == kind {
            Ok(())
        } else {
            Err(self.mistyped(value, what))
        }
    }

    pub(super) fn text(&mut self, value: Value<'_>) -> Result<(), BodyFault> {
        self.want(value, Kind::String, "a string")?;
        self.count_text(value);
        Ok(())
    }

    pub(super) fn word(&self, value: Value<'_>, words: &[&str]) -> Result<(), BodyFault> {
        self.want(value, Kind::String, "a string")?;
        if value.as_str().is_some_and(|word| words.contains(&&*word)) {
            return Ok(());
        }
        Err(self.fault(
            "invalid_value",
            &format!("must be one of {}", listed(words.iter())),
        ))
    }

    pub(super) fn integer(
        &self,
        value: Value<'_>,
        low: i128,
        high: i128,
    ) -> Result<i128, BodyFault> {
        self.want(value, Kind::Number, "an integer")?;
        let Some(number) = value.as_integer() else {
            return Err(self.fault(
                "invalid_type",
                "must be an integer, written without fraction or exponent",
            ));
        };
        if (low..=high).contains(&number) {
            return Ok(number);
        }
        Err(self.fault(
            "invalid_value",
            &format!("must be between {low} and {high}"),
        ))
    }

    pub(super) fn number(&self, value: Value<'_>, low: f64, high: f64) -> Result<(), BodyFault> {
        self.want(value, Kind::Number, "a number")?;
        if value
            .as_f64()
            .is_some_and(|number| (low..=high).contains(&number))
        {
            return Ok(());
        }
        Err(self.fault(
            "invalid_value",
            &format!("must be between {low} and {high}"),
        ))
    }

    pub(super) fn entries(
        &mut self,
        value: Value<'_>,
        kind: Kind,
        what: &str,
    ) -> Result<(), BodyFault> {
        self.want(value, Kind::Object, "an object")?;
        if value.len() > ENTRIES_MAX {
            return Err(self.fault("invalid_value", "has too many entries"));
        }
        match value.members().find(|member| member.value.kind() != kind) {
            Some(odd) => Err(self.mistyped(
                odd.value,
                &format!("an object whose values are each {what}"),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn size(
        &self,
        value: Value<'_>,
        fewest: usize,
        most: usize,
    ) -> Result<(), BodyFault> {
        if value.len() < fewest {
            return Err(self.fault("invalid_value", "must not be empty"));
        }
        if value.len() > most {
            return Err(self.fault(
                "invalid_value",
                &format!("must have at most {most} elements"),
            ));
        }
        Ok(())
    }

    pub(super) fn prompt(&mut self, value: Value<'_>) -> Result<(), BodyFault> {
        const WHAT: &str =
            "a string, an array of strings, an array of token ids or an array of those";
        if value.kind() == Kind::String {
            return self.text(value);
        }
        self.want(value, Kind::Array, WHAT)?;
        self.size(value, 1, usize::MAX)?;
        let first = value.elements().next().map(|element| element.kind());
        for (index, element) in value.elements().enumerate() {
            self.path.push(Step::Index(index));
            // A mixture has no meaning that two servers share.
            if Some(element.kind()) != first {
                return Err(self.mistyped(element, "of the same type as the first element"));
            }
            match element.kind() {
                Kind::String => self.text(element)?,
                Kind::Number => self.token(element)?,
                Kind::Array => {
                    self.size(element, 1, usize::MAX)?;
                    for (inner, token) in element.elements().enumerate() {
                        self.path.push(Step::Index(inner));
                        self.token(token)?;
                        self.path.pop();
                    }
                }
                Kind::Null | Kind::Bool | Kind::Object => {
                    return Err(self.mistyped(element, "a string or token ids"));
                }
            }
            self.path.pop();
        }
        Ok(())
    }

    fn token(&mut self, value: Value<'_>) -> Result<(), BodyFault> {
        self.integer(value, 0, i128::from(u32::MAX))?;
        self.count(1);
        Ok(())
    }

    fn count_text(&mut self, value: Value<'_>) {
        if self.aim.is_none() && !self.quiet {
            self.count(text_bound(value));
        }
    }

    pub(super) fn mistyped(&self, value: Value<'_>, what: &str) -> BodyFault {
        self.fault(
            "invalid_type",
            &format!("must be {what}, not {}", kind_name(value.kind())),
        )
    }

    pub(super) fn fault(&self, code: &'static str, problem: &str) -> BodyFault {
        let param = self.param("", true);
        BodyFault {
            message: format!("'{param}' {problem}."),
            param: Some(param),
            code: Some(code),
        }
    }

    /// The way to here and one name more, `messages[0].content` or, without numbers, `messages[].content`.
    pub(super) fn param(&self, last: &str, numbers: bool) -> String {
        let mut text = String::new();
        for step in &self.path {
            let written = match step {
                Step::Name(name) if text.is_empty() => write!(text, "{name}"),
                Step::Name(name) => write!(text, ".{name}"),
                Step::Index(index) if numbers => write!(text, "[{index}]"),
                Step::Index(_) => write!(text, "[]"),
            };
            debug_assert!(written.is_ok(), "a String takes every write");
        }
        if !last.is_empty() && !text.is_empty() {
            text.push('.');
        }
        text.push_str(last);
        text
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Null => "null",
        Kind::Bool => "a boolean",
        Kind::Number => "a number",
        Kind::String => "a string",
        Kind::Array => "an array",
        Kind::Object => "an object",
    }
}

pub(super) fn listed<'n>(names: impl Iterator<Item = &'n &'n str>) -> String {
    names
        .map(|name| format!("'{name}'"))
        .collect::<Vec<_>>()
        .join(", ")
}
