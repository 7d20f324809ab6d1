//! Decides which code belongs to the product. Most checks exempt code that is built only for tests, fuzzers or loom models.

use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ImplItem, Item, Meta, Stmt, Token, TraitItem};

/// Settings that are off in every product build. All others (features, targets) may be on or off.
const TEST_SETTINGS: [&str; 3] = ["test", "fuzzing", "loom"];

/// Returns whether attributes exclude their code from every product build.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<Meta>()
                    .is_ok_and(|condition| value(&condition) == Some(false)))
    })
}

/// Evaluates a condition in product builds. Returns `None` if the value depends on the build.
fn value(condition: &Meta) -> Option<bool> {
    match condition {
        Meta::Path(name) => TEST_SETTINGS
            .iter()
            .any(|setting| name.is_ident(setting))
            .then_some(false),
        Meta::NameValue(_) => None,
        Meta::List(list) => {
            let parts = list
                .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
                .ok()?;
            let values: Vec<Option<bool>> = parts.iter().map(value).collect();
            if list.path.is_ident("not") {
                values.first().copied().flatten().map(|value| !value)
            } else if list.path.is_ident("all") {
                combined(&values, false)
            } else if list.path.is_ident("any") {
                combined(&values, true)
            } else {
                None
            }
        }
    }
}

/// Returns `decisive` if any part has that value, its opposite if all parts have the opposite, and `None` otherwise.
fn combined(values: &[Option<bool>], decisive: bool) -> Option<bool> {
    if values.contains(&Some(decisive)) {
        Some(decisive)
    } else if values.iter().all(|value| *value == Some(!decisive)) {
        Some(!decisive)
    } else {
        None
    }
}

pub(crate) fn of_item(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

pub(crate) fn of_impl_item(item: &ImplItem) -> &[Attribute] {
    match item {
        ImplItem::Const(item) => &item.attrs,
        ImplItem::Fn(item) => &item.attrs,
        ImplItem::Type(item) => &item.attrs,
        ImplItem::Macro(item) => &item.attrs,
        _ => &[],
    }
}

pub(crate) fn of_trait_item(item: &TraitItem) -> &[Attribute] {
    match item {
        TraitItem::Const(item) => &item.attrs,
        TraitItem::Fn(item) => &item.attrs,
        TraitItem::Type(item) => &item.attrs,
        TraitItem::Macro(item) => &item.attrs,
        _ => &[],
    }
}

/// In practice, only expressions that are statements have attributes.
pub(crate) fn of_statement(statement: &Stmt) -> &[Attribute] {
    match statement {
        Stmt::Local(local) => &local.attrs,
        Stmt::Item(item) => of_item(item),
        Stmt::Macro(call) => &call.attrs,
        Stmt::Expr(expression, _) => match expression {
            Expr::Assign(expression) => &expression.attrs,
            Expr::Binary(expression) => &expression.attrs,
            Expr::Block(expression) => &expression.attrs,
            Expr::Call(expression) => &expression.attrs,
            Expr::ForLoop(expression) => &expression.attrs,
            Expr::If(expression) => &expression.attrs,
            Expr::Macro(expression) => &expression.attrs,
            Expr::Match(expression) => &expression.attrs,
            Expr::MethodCall(expression) => &expression.attrs,
            Expr::Return(expression) => &expression.attrs,
            Expr::While(expression) => &expression.attrs,
            _ => &[],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exempt(attribute: &str) -> bool {
        let item: Item = syn::parse_str(&format!("{attribute} fn f() {{}}")).unwrap();
        is_test_only(of_item(&item))
    }

    #[test]
    fn cfg_that_needs_tests_is_test_only() {
        for attribute in [
            "#[test]",
            "#[cfg(test)]",
            "#[cfg(any(test, fuzzing))]",
            "#[cfg(all(any(test, fuzzing), not(loom)))]",
            "#[cfg(all(test, feature = \"client\"))]",
            "#[cfg(loom)]",
        ] {
            assert!(exempt(attribute), "{attribute}");
        }
    }

    #[test]
    fn cfg_possible_outside_tests_is_checked() {
        for attribute in [
            "#[inline]",
            "#[cfg(not(test))]",
            "#[cfg(any(test, fuzzing, feature = \"client\"))]",
            "#[cfg(all(unix, not(loom)))]",
            "#[cfg_attr(test, allow(dead_code))]",
        ] {
            assert!(!exempt(attribute), "{attribute}");
        }
    }
}
