//! How the page looks: in light and dark and on a phone, for everybody. Its pictures in the documentation are made here.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::browser::Browser;

/// Where the pictures are.
const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/page");

/// The variable that asks for new pictures.
const UPDATE: &str = "BUILDKIT_LB_UPDATE_PICTURES";

/// A picture in a page must not make the repository or the page heavy.
const MOST_BYTES: usize = 200 << 10;

/// A way to look at the page.
struct Look {
    name: &'static str,
    dark: bool,
    width: u32,
    /// How much of the page a picture shows at most.
    height: u64,
    /// Pixels for each unit of width.
    scale: u32,
}

const LOOKS: [Look; 3] = [
    Look { name: "light", dark: false, width: 1280, height: 1500, scale: 1 },
    Look { name: "dark", dark: true, width: 1280, height: 1500, scale: 1 },
    Look { name: "phone", dark: false, width: 390, height: 844, scale: 2 },
];

/// The pages and looks of which the documentation has a picture.
const PICTURED: [(&str, &str); 4] =
    [("page", "light"), ("page", "dark"), ("page", "phone"), ("build", "light")];

/// Checks the page at which `browser` looks in every look, and makes its pictures if somebody asks for them.
pub(crate) fn check(browser: &Browser, url: &str, name: &str) {
    for look in &LOOKS {
        look.take(browser);
        let violations = browser.violations();
        let told: Vec<_> = violations.iter().map(in_short).collect();
        assert!(violations.is_empty(), "{url}, {}: {told:#?}", look.name);
        let wide = browser.run("return document.documentElement.scrollWidth > innerWidth");
        assert_eq!(wide, false, "{url}, {}: the page scrolls sideways", look.name);
        if std::env::var_os(UPDATE).is_some() && PICTURED.contains(&(name, look.name)) {
            fs::create_dir_all(PICTURES).expect("a directory");
            fs::write(picture(name, look.name), shot(browser, look)).expect("written");
        }
    }
    browser.devtools("Emulation.setEmulatedMedia", &json!({}));
    browser.devtools("Emulation.clearDeviceMetricsOverride", &json!({}));
}

impl Look {
    fn take(&self, browser: &Browser) {
        let scheme = if self.dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        browser.devtools("Emulation.setEmulatedMedia", &json!({"features": features}));
        self.resize(browser, 800);
    }

    fn resize(&self, browser: &Browser, height: u64) {
        let size = json!({
            "width": self.width,
            "height": height,
            "deviceScaleFactor": self.scale,
            "mobile": self.width < 600,
        });
        browser.devtools("Emulation.setDeviceMetricsOverride", &size);
        browser.wait(&format!("innerWidth === {} && innerHeight === {height}", self.width));
    }
}

fn picture(name: &str, look: &str) -> PathBuf {
    PathBuf::from(PICTURES).join(format!("{name}-{look}.png"))
}

/// A rule that is broken, and where.
fn in_short(violation: &Value) -> String {
    let nodes = violation["nodes"].as_array().into_iter().flatten();
    let nodes: Vec<_> = nodes.map(|node| node["html"].to_string()).take(3).collect();
    format!("{}: {} {nodes:?}", violation["id"], violation["help"])
}

/// A PNG picture of the page, without what is below the height of the look.
fn shot(browser: &Browser, look: &Look) -> Vec<u8> {
    browser.run("document.activeElement.blur()");
    let height = browser.run("return document.documentElement.scrollHeight");
    look.resize(browser, height.as_u64().expect("a number").min(look.height));
    browser.picture()
}

#[test]
fn the_documentation_has_a_picture_of_every_look() {
    for (name, look) in PICTURED {
        let path = picture(name, look);
        let told = path.display();
        let png = fs::read(&path).unwrap_or_default();
        assert!(!png.is_empty(), "{told} is missing: `make pictures` makes it");
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{told} is no PNG");
        assert!((5 << 10..MOST_BYTES).contains(&png.len()), "{told}: {} bytes", png.len());
        let width = u32::from_be_bytes(png[16..20].try_into().expect("four bytes"));
        let look = LOOKS.iter().find(|known| known.name == look).expect("a look");
        assert_eq!(width, look.width * look.scale, "{told}");
    }
}
