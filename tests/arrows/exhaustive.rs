//! Public types with public fields or variants are `#[non_exhaustive]`, so that later versions can extend them.
//!
//! Types of the engine are `pub(crate)`, which the lint `unreachable_pub` enforces, so every `pub` type belongs to the API.

use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Fields, ItemEnum, ItemStruct, Visibility};

use crate::assert_none;
use crate::modules::read_sources;

/// Types that 0.5.1 published without the attribute. Programs match and construct them.
const OF_0_5_1: &[&str] = &[
    "AsyncStream",
    "HumphreyLink",
    "OutgoingMessage",
    "Restion",
    "WebsocketError",
];

#[derive(Default)]
struct PublicTypes {
    /// The name of each type, and whether it is `#[non_exhaustive]`.
    found: Vec<(String, bool)>,
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_non_exhaustive(attributes: &[Attribute]) -> bool {
    let mut attributes = attributes.iter();
    attributes.any(|attribute| attribute.path().is_ident("non_exhaustive"))
}

fn has_public_field(fields: &Fields) -> bool {
    fields.iter().any(|field| is_public(&field.vis))
}

impl<'ast> Visit<'ast> for PublicTypes {
    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        if is_public(&item.vis) {
            self.found
                .push((item.ident.to_string(), is_non_exhaustive(&item.attrs)));
        }
        visit::visit_item_enum(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        if is_public(&item.vis) && has_public_field(&item.fields) {
            self.found
                .push((item.ident.to_string(), is_non_exhaustive(&item.attrs)));
        }
        visit::visit_item_struct(self, item);
    }
}

fn public_types(text: &str) -> Vec<(String, bool)> {
    let mut types = PublicTypes::default();
    types.visit_file(&syn::parse_file(text).unwrap());
    types.found
}

#[test]
fn public_types_of_0_6_are_non_exhaustive() {
    let sources = read_sources(Path::new(crate::REPOSITORY), "src");
    let mut exhaustive = Vec::new();
    let mut found = 0;
    for text in sources.values() {
        for (name, is_open) in public_types(text) {
            found += 1;
            let is_old = OF_0_5_1.contains(&name.as_str());
            assert!(!(is_old && is_open), "{name}: programs of 0.5.1 match it");
            if !is_open && !is_old {
                exhaustive.push(name);
            }
        }
    }
    assert!(found > 20, "few public types are found: {found}");
    exhaustive.sort();
    assert_none(&exhaustive, "public types without #[non_exhaustive]");
}

#[test]
fn exhaustive_public_type_is_found() {
    let found = public_types(
        "pub enum Open { A }  pub(crate) enum Inner { A }
         pub struct Fields { pub a: u8 }  pub struct Opaque { a: u8 }
         #[derive(Debug)] #[non_exhaustive] pub struct Growing(pub u8);",
    );
    let expected = [("Open", false), ("Fields", false), ("Growing", true)];
    let expected = expected.map(|(name, is_open)| (name.to_owned(), is_open));
    assert_eq!(found, expected);
}
