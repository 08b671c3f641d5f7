use std::fs;

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

impl Program {
    /// nginx as applications behind it are: TLS on port 443 with redirects to `https`, cookies
    /// for `https`, promises of `https`, and checks of the origin; port 80 redirects to it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn web_application(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("web.pem"), &leaf.certificate)?;
        fs::write(lab.path("web.key"), &leaf.key)?;
        let root = lab.path("web");
        fs::create_dir_all(&root)?;
        fs::write(root.join("chunked"), vec![b'c'; 100_000])?;
        let directory = lab.dir().display();
        fs::write(
            lab.path("nginx.conf"),
            format!(
                r#"daemon off; master_process off; user root; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_max_body_size 8m; client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{ listen 80; return 301 https://$host$request_uri; }}
  server {{
    listen 443 ssl; listen 9200 ssl;
    ssl_certificate {directory}/web.pem; ssl_certificate_key {directory}/web.key;
    add_header Strict-Transport-Security "max-age=31536000; includeSubDomains" always;
    add_header Alt-Svc 'h3=":443"' always;
    location = /old {{ return 301 https://$host/new; }}
    location = /old-port {{ return 302 https://$http_host/new; }}
    location = /old-upstream {{ return 307 https://$host:$server_port/new; }}
    location = /refresh {{ add_header Refresh "0; url=https://$host/new"; return 200; }}
    location = /elsewhere {{ return 302 https://other.example/new; }}
    location = /new {{ return 200 "new over $scheme\n"; }}
    location = /login {{
      add_header Set-Cookie "session=needle-cookie; Path=/; Secure; HttpOnly; SameSite=None";
      add_header Set-Cookie "__Host-id=1; Path=/; Secure";
      return 302 https://$http_host/private;
    }}
    location = /private {{
      if ($cookie_session != "needle-cookie") {{ return 403 "no cookie\n"; }}
      return 200 "welcome back\n";
    }}
    location = /form {{
      if ($http_origin != "https://$http_host") {{ return 403 "forged from $http_origin\n"; }}
      if ($http_referer != "https://$http_host/page") {{ return 403 "forged\n"; }}
      return 200 "accepted\n";
    }}
    location = /echo {{
      client_body_in_single_buffer on; proxy_set_header X-Body $request_body;
      proxy_pass http://127.0.0.1:8081;
    }}
    location = /_bulk {{ proxy_pass http://127.0.0.1:8081; }}
    location = /chunked {{
      root {root}; gzip off; chunked_transfer_encoding on;
      sub_filter_types *; sub_filter none none; add_trailer X-Sum needle-trailer;
    }}
    location / {{ return 404 "nothing\n"; }}
  }}
  server {{
    listen 127.0.0.1:8081;
    location = /echo {{ return 200 "$http_x_body"; }}
    location = /_bulk {{ default_type application/json; return 200 '{{"took":$http_content_length}}'; }}
  }}
}}
"#,
                root = root.display()
            ),
        )?;
        let mut command = lab.site.command("nginx");
        command
            .arg("-c")
            .arg(lab.path("nginx.conf"))
            .arg("-p")
            .arg(lab.dir());
        Self::start(lab, command, 443)
    }
}
