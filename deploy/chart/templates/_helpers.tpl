{{/* Names of the proxy's objects. */}}
{{- define "buildkit-lb.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "buildkit-lb.fullname" -}}
{{- $name := include "buildkit-lb.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 55 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 55 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that select pods: (list . "proxy"). They can never change. */}}
{{- define "buildkit-lb.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "buildkit-lb.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object: (list . "proxy"). */}}
{{- define "buildkit-lb.labels" -}}
{{- $root := index . 0 -}}
{{ include "buildkit-lb.selectorLabels" . }}
app.kubernetes.io/part-of: buildkit-lb
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods: without versions, which would end every daemon when only the chart's number changes. */}}
{{- define "buildkit-lb.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "buildkit-lb.selectorLabels" . }}
app.kubernetes.io/part-of: buildkit-lb
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "buildkit-lb.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}
{{- .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}
{{- else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Labels of nodes for pods that run the image: (list . SELECTOR), with its architecture. */}}
{{- define "buildkit-lb.nodeSelector" -}}
{{- $selector := deepCopy (index . 1) }}
{{- with (index . 0).Values.image.architecture }}
{{- $chosen := get $selector "kubernetes.io/arch" | default . }}
{{- if ne $chosen . }}
{{- fail (printf "image.architecture is %s, but a nodeSelector asks for nodes of %s" . $chosen) }}
{{- end }}
{{- $selector = set $selector "kubernetes.io/arch" . }}
{{- end }}
{{- if $selector }}
{{- toYaml $selector }}
{{- end }}
{{- end }}

{{- define "buildkit-lb.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "buildkit-lb.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* The Secret with the token for changes on the admin port. */}}
{{- define "buildkit-lb.tokenSecret" -}}
{{- .Values.adminToken.existingSecret | default (printf "%s-token" (include "buildkit-lb.fullname" .)) }}
{{- end }}

{{/* Where containers that have the token find it. */}}
{{- define "buildkit-lb.tokenMount" -}}
- name: token
  mountPath: /run/secrets/buildkit-lb
  readOnly: true
{{- end }}
{{- define "buildkit-lb.tokenVolume" -}}
- name: token
  secret:
    secretName: {{ include "buildkit-lb.tokenSecret" . }}
    items: [{key: token, path: token}]
{{- end }}

{{/* The name in the certificate of the admin port. Another release's proxies may have another. */}}
{{- define "buildkit-lb.adminServerName" -}}
{{- $own := printf "%s-admin.%s" (include "buildkit-lb.fullname" .) .Release.Namespace }}
{{- .Values.adminTLS.serverName | default (printf "%s.svc" (.Values.buildkitd.drain.proxies | default $own)) }}
{{- end }}

{{/* How a monitor connects to the admin port. */}}
{{- define "buildkit-lb.scrapeTLS" -}}
{{- with .Values.adminTLS.existingSecret }}
scheme: https
tlsConfig:
  serverName: {{ include "buildkit-lb.adminServerName" $ }}
  ca:
    secret: {name: {{ . }}, key: ca.crt}
  {{- with $.Values.adminTLS.scraperSecret }}
  cert:
    secret: {name: {{ . }}, key: tls.crt}
  keySecret: {name: {{ . }}, key: tls.key}
  {{- end }}
{{- end }}
{{- end }}

{{/* A probe of the proxy: (list . PROBE). Over HTTPS where the admin port speaks TLS. */}}
{{- define "buildkit-lb.probe" -}}
{{- $probe := deepCopy (index . 1) }}
{{- if and (index . 0).Values.adminTLS.existingSecret $probe.httpGet }}
{{- $_ := set $probe.httpGet "scheme" ($probe.httpGet.scheme | default "HTTPS") }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{/* The Secret with the certificates for clients, or nothing. */}}
{{- define "buildkit-lb.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ include "buildkit-lb.fullname" . }}-tls
{{- else }}{{ .Values.tls.existingSecret }}{{ end }}
{{- end }}

{{/* The Secret with the certificates that the proxy shows daemons, or nothing. */}}
{{- define "buildkit-lb.backendTLSSecret" -}}
{{- if .Values.backendTLS.certManager.enabled }}{{ include "buildkit-lb.fullname" . }}-backend-tls
{{- else }}{{ .Values.backendTLS.existingSecret }}{{ end }}
{{- end }}

{{/* The Secret with the certificates of the chart's own daemons, or nothing. */}}
{{- define "buildkit-lb.daemonTLSSecret" -}}
{{- if .Values.backendTLS.certManager.enabled }}{{ .Values.buildkitd.name }}-tls
{{- else }}{{ .Values.backendTLS.daemonSecret }}{{ end }}
{{- end }}

{{/* Whether the annotations of the Service make its load balancer one of the network's own: "true" or nothing. */}}
{{- define "buildkit-lb.internal" -}}
{{- $asked := dict
  "service.beta.kubernetes.io/azure-load-balancer-internal" "true"
  "service.beta.kubernetes.io/aws-load-balancer-internal" "true"
  "service.beta.kubernetes.io/aws-load-balancer-scheme" "internal"
  "networking.gke.io/load-balancer-type" "Internal"
  "cloud.google.com/load-balancer-type" "Internal"
  "service.beta.kubernetes.io/openstack-internal-load-balancer" "true"
  "service.beta.kubernetes.io/oci-load-balancer-internal" "true"
  "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type" "intranet" }}
{{- $internal := "" }}
{{- range $name, $value := .Values.service.annotations }}
{{- if eq (get $asked $name | default "-") $value }}{{ $internal = "true" }}{{ end }}
{{- end }}
{{- $internal }}
{{- end }}

{{/* No install is open to the world by accident. */}}
{{- define "buildkit-lb.validateAccess" -}}
{{- $certificates := and (include "buildkit-lb.tlsSecret" .) (eq .Values.tls.clientAuth "required") }}
{{- $ranges := .Values.service.loadBalancerSourceRanges }}
{{- $everyone := or (has "0.0.0.0/0" $ranges) (has "::/0" $ranges) }}
{{- $limited := or $certificates (and $ranges (not $everyone)) (include "buildkit-lb.internal" .) .Values.acknowledgeUnauthenticated }}
{{- if and (eq .Values.service.type "LoadBalancer") (gt (int .Values.replicaCount) 0) (not $limited) }}
{{- fail "service.type is LoadBalancer, and everybody who reaches it could build: set tls with clientAuth required, service.loadBalancerSourceRanges, or an annotation that makes the load balancer internal. If the network keeps others out, set acknowledgeUnauthenticated=true" }}
{{- end }}
{{- if and .Values.tls.certManager.enabled .Values.tls.existingSecret }}
{{- fail "tls: name a Secret or let cert-manager make one, not both" }}
{{- end }}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) }}
{{- fail "tls.certManager.issuerRef has to name the issuer that signs the certificate" }}
{{- end }}
{{- if and .Values.clientTokens.existingSecret (or (not (include "buildkit-lb.tlsSecret" .)) (eq .Values.tls.clientAuth "required")) }}
{{- fail "clientTokens: tokens are taken over TLS only, and of clients that need no certificate: set tls with clientAuth optional or off" }}
{{- end }}
{{- if and .Values.backendTLS.certManager.enabled (or .Values.backendTLS.existingSecret .Values.backendTLS.daemonSecret) }}
{{- fail "backendTLS: name Secrets or let cert-manager make them, not both" }}
{{- end }}
{{- if and .Values.backendTLS.certManager.enabled (not .Values.backendTLS.certManager.issuerRef.name) }}
{{- fail "backendTLS.certManager.issuerRef has to name the issuer that signs the certificates" }}
{{- end }}
{{- if and (ne .Values.buildkitd.mode "none") (ne (empty .Values.backendTLS.existingSecret) (empty .Values.backendTLS.daemonSecret)) }}
{{- fail "backendTLS: existingSecret is for the proxy and daemonSecret for the daemons: set both, or they cannot connect" }}
{{- end }}
{{- end }}

{{/* The policy that fits the daemons' names, if none is set. */}}
{{- define "buildkit-lb.policy" -}}
{{- if .Values.policy }}{{ .Values.policy }}
{{- else if eq .Values.buildkitd.mode "deployment" }}least-builds
{{- else }}consistent-hash{{ end }}
{{- end }}

{{/* Services to follow, as {"found": [URL, ...]}. */}}
{{- define "buildkit-lb.discover" -}}
{{- $found := list }}
{{- if ne .Values.buildkitd.mode "none" }}
{{- $found = append $found (printf "kubernetes://$(POD_NAMESPACE)/%s:1234" .Values.buildkitd.name) }}
{{- end }}
{{- $found = concat $found (include "buildkit-lb.services" .Values.discover | fromJson).found }}
{{- dict "found" $found | toJson }}
{{- end }}

{{/* The same for a list of services of the values. */}}
{{- define "buildkit-lb.services" -}}
{{- $found := list }}
{{- range . }}
{{- $found = append $found (printf "kubernetes://%s/%s:%v" .namespace .name (.port | default 1234)) }}
{{- end }}
{{- dict "found" $found | toJson }}
{{- end }}

{{/*
Where daemons with fixed addresses are, as {"found": [{port, cidr}, ...]}: of a list of backends of the values. A name has
no cidr, since policies know only addresses.
*/}}
{{- define "buildkit-lb.fixed" -}}
{{- $found := list }}
{{- range . }}
{{- if not (contains "unix:" .) }}
{{- $authority := regexReplaceAll "^([^=]*=)?(tcp://)?" (regexReplaceAll "[?].*$" . "") "" }}
{{- $port := regexFind "[0-9]+$" $authority | int }}
{{- $host := regexReplaceAll ":[0-9]+$" $authority "" | trimPrefix "[" | trimSuffix "]" }}
{{- $cidr := "" }}
{{- if contains ":" $host }}
{{- $cidr = printf "%s/128" $host }}
{{- else if regexMatch "^[0-9.]+$" $host }}
{{- $cidr = printf "%s/32" $host }}
{{- end }}
{{- $found = append $found (dict "port" $port "cidr" $cidr) }}
{{- end }}
{{- end }}
{{- dict "found" $found | toJson }}
{{- end }}

{{/* All services of the values, as {"found": [{namespace, name, port}, ...]}. */}}
{{- define "buildkit-lb.allDiscovered" -}}
{{- $found := .Values.discover }}
{{- range .Values.pools }}
{{- $found = concat $found (.discover | default list) }}
{{- end }}
{{- dict "found" $found | toJson }}
{{- end }}

{{/* The grace period of the proxy: never shorter than what it may take to drain. */}}
{{- define "buildkit-lb.gracePeriod" -}}
{{- $least := add (int .Values.drain.timeoutSeconds) (int .Values.drain.delaySeconds) 10 }}
{{- $grace := .Values.terminationGracePeriodSeconds | default $least | int }}
{{- if lt (int $grace) (int $least) }}
{{- fail (printf "terminationGracePeriodSeconds is %d, but a drain may take drain.timeoutSeconds + drain.delaySeconds + 10 = %d: builds would be cut" $grace $least) }}
{{- end }}
{{- $grace }}
{{- end }}

{{/* The same for the daemons. */}}
{{- define "buildkit-lb.buildkitdGracePeriod" -}}
{{- $least := add (int .Values.buildkitd.drain.timeoutSeconds) 30 }}
{{- $grace := .Values.buildkitd.terminationGracePeriodSeconds | default $least | int }}
{{- if lt (int $grace) (int $least) }}
{{- fail (printf "buildkitd.terminationGracePeriodSeconds is %d, but a drain may take buildkitd.drain.timeoutSeconds + 30 = %d: builds would be cut" $grace $least) }}
{{- end }}
{{- $grace }}
{{- end }}

{{/* Not empty where the number of daemons is what the values say. */}}
{{- define "buildkit-lb.fixedReplicas" -}}
{{- if and (ne (toString .Values.buildkitd.replicas) "<nil>") (not .Values.buildkitd.autoscaling.enabled) }}true{{ end }}
{{- end }}

{{/* Not empty where pods are told how many builds they have: only a Deployment chooses which of them end by it. */}}
{{- define "buildkit-lb.deletionCost" -}}
{{- if or .Values.pods.deletionCost (and .Values.buildkitd.autoscaling.enabled (eq .Values.buildkitd.mode "deployment")) }}true{{ end }}
{{- end }}

{{/* Not empty where KEDA asks the proxy. */}}
{{- define "buildkit-lb.scaler" -}}
{{- if and .Values.buildkitd.autoscaling.enabled (eq .Values.buildkitd.autoscaling.trigger "external-push") }}true{{ end }}
{{- end }}

{{/* What cannot work is refused before it is installed. */}}
{{- define "buildkit-lb.validate" -}}
{{- include "buildkit-lb.validateAccess" . }}
{{- if not (or .Values.image.registry (contains "/" .Values.image.repository)) }}
{{- fail (printf "image.registry is empty, and nobody publishes docker.io/library/%s: build the image with deploy/image/build, push it, and say where it is" .Values.image.repository) }}
{{- end }}
{{- if and (gt (int .Values.replicaCount) 1) (not .Values.acknowledgeReplicaLimits) }}
{{- fail "replicaCount above 1: proxies do not share their builds yet, so a build whose calls reach two of them fails. Read docs/kubernetes/README.md, then set acknowledgeReplicaLimits=true" }}
{{- end }}
{{- if and (eq .Values.buildkitd.mode "none") (not .Values.backends) (not .Values.discover) }}
{{- fail "buildkitd.mode is none, so backends or discover has to name the daemons" }}
{{- end }}
{{- if and (eq .Values.buildkitd.mode "pod") (eq (toString .Values.buildkitd.replicas) "<nil>") }}
{{- fail "buildkitd.replicas is null, but the number of bare pods has to be set" }}
{{- end }}
{{- if .Values.buildkitd.autoscaling.enabled }}
{{- if not (has .Values.buildkitd.mode (list "statefulset" "deployment")) }}
{{- fail (printf "buildkitd.autoscaling: nothing can be scaled where buildkitd.mode is %s" .Values.buildkitd.mode) }}
{{- end }}
{{- if gt (int .Values.buildkitd.autoscaling.minReplicas) (int .Values.buildkitd.autoscaling.maxReplicas) }}
{{- fail "buildkitd.autoscaling: minReplicas is above maxReplicas" }}
{{- end }}
{{- if and (eq .Values.buildkitd.autoscaling.trigger "external-push") (ne (int .Values.replicaCount) 1) }}
{{- fail "buildkitd.autoscaling: KEDA asks one proxy, which knows its own builds only, so external-push needs replicaCount 1; with others use the trigger prometheus" }}
{{- end }}
{{- if and (eq .Values.buildkitd.autoscaling.trigger "prometheus") (not .Values.buildkitd.autoscaling.prometheus.serverAddress) }}
{{- fail "buildkitd.autoscaling: the trigger prometheus needs prometheus.serverAddress" }}
{{- end }}
{{- end }}
{{- if and (ne .Values.buildkitd.mode "none") .Values.buildkitd.drain.proxies (not .Values.adminToken.existingSecret) }}
{{- fail "buildkitd.drain.proxies belong to another release, so adminToken.existingSecret has to name a Secret with their token" }}
{{- end }}
{{- if and (or .Values.adminTLS.clients .Values.adminTLS.scraperSecret) (not .Values.adminTLS.existingSecret) }}
{{- fail "adminTLS.existingSecret has to name the certificates of the admin port, or no client can show a certificate there" }}
{{- end }}
{{- if and .Values.adminRestrictReading (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) (not .Values.adminTLS.scraperSecret) }}
{{- fail "adminRestrictReading: Prometheus could not read: adminTLS.scraperSecret has to name the certificate that it shows" }}
{{- end }}
{{- $ports := list 1234 9090 9093 (int .Values.service.port) }}
{{- $names := list "default" "buildkit" "admin" "scaler" }}
{{- range .Values.pools }}
{{- if has (int .port) $ports }}
{{- fail (printf "pools: port %d of %s is taken" (int .port) .name) }}
{{- end }}
{{- if has .name $names }}
{{- fail (printf "pools: the name %s is taken" .name) }}
{{- end }}
{{- if not (or .backends .discover) }}
{{- fail (printf "pools: backends or discover has to name the daemons of %s" .name) }}
{{- end }}
{{- $ports = append $ports (int .port) }}
{{- $names = append $names .name }}
{{- end }}
{{- if and .Values.podDisruptionBudget.enabled (eq (toString .Values.podDisruptionBudget.maxUnavailable) "<nil>") (eq (toString .Values.podDisruptionBudget.minAvailable) "<nil>") }}
{{- fail "podDisruptionBudget needs maxUnavailable or minAvailable" }}
{{- end }}
{{- if and .Values.metrics.prometheusRule.enabled (hasPrefix "azmonitoring" .Values.metrics.apiVersion) }}
{{- fail "metrics.prometheusRule: Azure's managed Prometheus has no such kind. Read docs/kubernetes/README.md, Monitoring, for its rule groups" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor and metrics.podMonitor would scrape the same twice: enable one" }}
{{- end }}
{{- end }}

{{/* Image of the daemons. */}}
{{- define "buildkit-lb.buildkitdImage" -}}
{{- with .Values.buildkitd.image.registry }}{{ . }}/{{ end }}
{{- .Values.buildkitd.image.repository }}
{{- if .Values.buildkitd.image.digest }}@{{ .Values.buildkitd.image.digest }}
{{- else }}:{{ .Values.buildkitd.image.tag }}{{ if .Values.buildkitd.rootless }}-rootless{{ end }}{{ end }}
{{- end }}

{{/* Where a daemon keeps its cache and its configuration. */}}
{{- define "buildkit-lb.buildkitdRoot" -}}
{{ if .Values.buildkitd.rootless }}/home/user/.local/share/buildkit{{ else }}/var/lib/buildkit{{ end }}
{{- end }}
{{- define "buildkit-lb.buildkitdConfigDirectory" -}}
{{ if .Values.buildkitd.rootless }}/home/user/.config/buildkit{{ else }}/etc/buildkit{{ end }}
{{- end }}
