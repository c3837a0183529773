//! XML files, such as Maven's settings and NuGet's configuration: the text of elements, and the value of
//! `<add key="…" value="…"/>`, with the names that the class lists.

use super::finder::SecretFinder;
use quick_xml::{
    Reader, XmlVersion,
    events::{BytesRef, BytesStart, Event},
};
use std::collections::BTreeMap;

/// Deeper elements are not entered.
const DEPTH_MAX: usize = 64;
/// Maximum fields of one element.
const FIELDS_MAX: usize = 256;
/// Maximum length of a field.
const FIELD_LEN_MAX: usize = 4_096;
/// Maximum servers of which the address is remembered.
const SERVERS_MAX: usize = 256;

/// An element that has not ended yet.
#[derive(Default)]
struct OpenElement {
    name: String,
    text: String,
    /// The names and texts of the elements in it.
    fields: Vec<(String, String)>,
}

impl OpenElement {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn push_text(&mut self, text: &str) {
        if self.text.len() + text.len() <= FIELD_LEN_MAX {
            self.text.push_str(text);
        }
    }

    fn add_field(&mut self, name: String, value: String) {
        if self.fields.len() < FIELDS_MAX {
            self.fields.push((name, value));
        }
    }

    fn field(&self, wanted: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.trim())
    }
}

/// A secret, and what stands beside it.
struct ServerLogin {
    server: String,
    user: Option<String>,
    secret: String,
}

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let mut logins = Vec::new();
    let mut servers = BTreeMap::new();
    read(text, |element| {
        add_servers(&mut servers, element);
        logins.extend(logins_in(finder, element));
    });
    for ServerLogin {
        server,
        user,
        secret,
    } in logins
    {
        let as_sent = user.map(|user| finder.basic_form(&user, &secret));
        let aliases = as_sent.into_iter().collect();
        match servers.get(&server) {
            Some(place) => finder.add_for_host(place, &secret, Some(server), aliases),
            None => finder.add_secret(&secret, Some(server), aliases),
        }
    }
}

/// Reads a document up to its end, or to where it is malformed; `ended` gets each element.
fn read(text: &str, mut ended: impl FnMut(&OpenElement)) {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = false;
    let mut open = vec![OpenElement::default()];
    // Elements that are too deep to be entered.
    let mut skipped = 0;
    loop {
        match reader.read_event() {
            Ok(Event::Start(start)) if open.len() < DEPTH_MAX => {
                add_pair(&mut open, &start);
                open.push(OpenElement::named(start.local_name().as_ref()));
            }
            Ok(Event::Start(_)) => skipped += 1,
            Ok(Event::Empty(start)) => add_pair(&mut open, &start),
            Ok(Event::Text(part)) => push_text(&mut open, &part),
            Ok(Event::CData(part)) => push_text(&mut open, &part),
            Ok(Event::GeneralRef(part)) => push_text(&mut open, &referenced(&part)),
            Ok(Event::End(_)) if skipped > 0 => skipped -= 1,
            Ok(Event::End(_)) => {
                let Some(element) = (open.len() > 1).then(|| open.pop()).flatten() else {
                    return;
                };
                ended(&element);
                if let Some(parent) = open.last_mut() {
                    parent.add_field(element.name, element.text);
                }
            }
            Ok(Event::Eof) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn push_text(open: &mut [OpenElement], text: &str) {
    if let Some(element) = open.last_mut() {
        element.push_text(text);
    }
}

/// The text of `&amp;`, `&#38;` and their like; entities of the document's own are none.
fn referenced(part: &BytesRef<'_>) -> String {
    if let Ok(Some(char)) = part.resolve_char_ref() {
        return char.to_string();
    }
    let known = quick_xml::escape::resolve_predefined_entity(part);
    known.unwrap_or_default().to_owned()
}

/// Adds the field that `<add key="…" value="…"/>` is.
fn add_pair(open: &mut [OpenElement], start: &BytesStart<'_>) {
    let attribute = |name: &str| {
        let found = start.try_get_attribute(name).ok()??;
        Some(
            found
                .normalized_value(XmlVersion::Implicit1_0)
                .ok()?
                .into_owned(),
        )
    };
    if let (Some(key), Some(value), Some(parent)) =
        (attribute("key"), attribute("value"), open.last_mut())
    {
        parent.add_field(key, value);
    }
}

/// Remembers the addresses of servers: elements with an `id` and a `url`, and NuGet's sources.
fn add_servers(servers: &mut BTreeMap<String, String>, element: &OpenElement) {
    let mut add = |name: &str, url: &str| {
        if servers.len() < SERVERS_MAX {
            servers.insert(name.to_owned(), url.to_owned());
        }
    };
    if let (Some(id), Some(url)) = (element.field("id"), element.field("url")) {
        add(id, url);
    }
    if element.name == "packageSources" {
        for (name, url) in &element.fields {
            add(name, url);
        }
    }
}

/// The secrets among the fields of an element.
fn logins_in(finder: &SecretFinder<'_>, element: &OpenElement) -> Vec<ServerLogin> {
    let server = element.field("id").unwrap_or(&element.name);
    let secrets = element.fields.iter().filter(|(name, value)| {
        finder.class.keys.iter().any(|key| key == name) && !is_indirect(value.trim())
    });
    secrets
        .map(|(_, value)| ServerLogin {
            server: server.to_owned(),
            user: element.field("username").map(str::to_owned),
            secret: value.trim().to_owned(),
        })
        .collect()
}

/// Whether a value only names a variable, or is encrypted, as Maven writes it.
fn is_indirect(value: &str) -> bool {
    (value.starts_with("${") || value.starts_with('{')) && value.ends_with('}')
}
