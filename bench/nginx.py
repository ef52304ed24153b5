"""Configurations of nginx for the parts that it plays: of a file server, a caching proxy, and an upstream."""

NGINX = """
{user}
daemon off;
worker_processes {workers};
error_log {home}/error.log error;
pid {home}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    default_type application/octet-stream;
    {http}
}}
"""

NGINX_FILES = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {root};
        location /v2/ {{ add_header Docker-Distribution-Api-Version registry/2.0; }}
        location ~ /manifests/ {{
            default_type {manifest_type};
            add_header Docker-Distribution-Api-Version registry/2.0;
            add_header Docker-Content-Digest {digest};
        }}
    }}
"""

NGINX_PROXY = """
    proxy_cache_path {home}/cache levels=1:2 keys_zone=blobs:10m max_size=50g inactive=1d use_temp_path=off;
    upstream origin {{ server {origin}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass {scheme}://origin;
            {tls}
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 300s;
            proxy_cache blobs;
            proxy_cache_valid 200 1h;
            proxy_cache_lock on;
            proxy_cache_lock_age 300s;
            proxy_cache_lock_timeout 300s;
        }}
    }}
"""

NGINX_ORIGIN = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        listen 127.0.0.1:{tls_port} ssl backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        root {root};
        location /v2/ {{ add_header Docker-Distribution-Api-Version registry/2.0; }}
    }}
"""

NGINX_VERIFIES = """
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_ssl_trusted_certificate {ca_file};
"""
