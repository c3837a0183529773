//! Files, `impl` blocks and functions that are too large.

use super::source::{SourceFile, Workspace};
use syn::{
    ImplItemFn, ItemFn, ItemImpl,
    token::Brace,
    visit::{self, Visit},
};

const FILE_LINES_MAX: usize = 600;
const IMPL_LINES_MAX: usize = 300;
const FUNCTION_LINES_MAX: usize = 80;

/// What is above the limits, as lines to print.
#[derive(Debug, Default)]
pub struct LargeItems {
    pub files: Vec<String>,
    pub impls: Vec<String>,
    pub functions: Vec<String>,
}

pub fn large(workspace: &Workspace) -> LargeItems {
    let mut large = LargeItems::default();
    for file in &workspace.files {
        if file.lines > FILE_LINES_MAX {
            let line = format!("{}: {} lines", file.path.display(), file.lines);
            large.files.push(line);
        }
        let mut visitor = SizeVisitor {
            file,
            large: &mut large,
        };
        for item in &file.items {
            visitor.visit_item(item);
        }
    }
    large
}

struct SizeVisitor<'a> {
    file: &'a SourceFile,
    large: &'a mut LargeItems,
}

impl SizeVisitor<'_> {
    fn describe(&self, braces: Brace, name: &str, lines: usize) -> String {
        let line = braces.span.open().start().line;
        format!("{}:{line}: {name}, {lines} lines", self.file.path.display())
    }

    fn function(&mut self, braces: Brace, name: &str) {
        let lines = lines_of(braces);
        if lines > FUNCTION_LINES_MAX {
            let line = self.describe(braces, name, lines);
            self.large.functions.push(line);
        }
    }
}

fn lines_of(braces: Brace) -> usize {
    braces.span.close().end().line + 1 - braces.span.open().start().line
}

impl<'ast> Visit<'ast> for SizeVisitor<'_> {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(function.block.brace_token, &function.sig.ident.to_string());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.function(function.block.brace_token, &function.sig.ident.to_string());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_impl(&mut self, block: &'ast ItemImpl) {
        let lines = lines_of(block.brace_token);
        if lines > IMPL_LINES_MAX {
            let line = self.describe(block.brace_token, "impl", lines);
            self.large.impls.push(line);
        }
        visit::visit_item_impl(self, block);
    }
}
