{{/*
The pod of a daemon, the same in every mode. Takes (dict "root" $ "volume" BOOL): whether the root
directory is a claim of the StatefulSet's.
*/}}
{{- define "buildkit-lb.buildkitdPodMetadata" -}}
labels:
  {{- include "buildkit-lb.podLabels" (list . "buildkitd") | nindent 2 }}
  {{- /* What pods.details shows. */}}
  {{- if not .Values.buildkitd.image.digest }}
  app.kubernetes.io/version: {{ .Values.buildkitd.image.tag | trunc 63 | quote }}
  {{- end }}
  {{- with index .Values.buildkitd.nodeSelector "kubernetes.io/arch" | default .Values.image.architecture }}
  kubernetes.io/arch: {{ . | quote }}
  {{- end }}
  {{- with .Values.buildkitd.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: buildkitd
  {{- if .Values.buildkitd.config }}
  checksum/config: {{ .Values.buildkitd.config | sha256sum }}
  {{- end }}
  {{- with .Values.buildkitd.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* The security context of containers that need no right, beside a daemon. */}}
{{- define "buildkit-lb.noRights" -}}
runAsUser: 65532
runAsGroup: 65532
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "buildkit-lb.buildkitdPodSpec" -}}
{{- $root := .root -}}
{{- with $root.Values.buildkitd.serviceAccount.name }}
serviceAccountName: {{ . }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $root.Values.buildkitd.rootless }}
securityContext:
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
{{- end }}
terminationGracePeriodSeconds: {{ include "buildkit-lb.buildkitdGracePeriod" $root }}
{{- with $root.Values.buildkitd.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with include "buildkit-lb.nodeSelector" (list $root $root.Values.buildkitd.nodeSelector) }}
nodeSelector:
  {{- . | nindent 2 }}
{{- end }}
{{- with $root.Values.buildkitd.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.buildkitd.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if $root.Values.buildkitd.topologySpreadConstraints }}
  {{- toYaml $root.Values.buildkitd.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - topologyKey: kubernetes.io/hostname
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "buildkit-lb.selectorLabels" (list $root "buildkitd") | nindent 8 }}
  {{- end }}
{{- if ne (toString $root.Values.buildkitd.hostUsers) "<nil>" }}
hostUsers: {{ $root.Values.buildkitd.hostUsers }}
{{- end }}
{{- with $root.Values.buildkitd.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- $ca := include "buildkit-lb.caBundle" $root }}
{{- if or $ca $root.Values.buildkitd.initContainers }}
initContainers:
  {{- if $ca }}
  # The file of authorities that buildkitd and its git both read: those of the image and yours. git has no second
  # file.
  - name: ca-bundle
    image: {{ include "buildkit-lb.buildkitdImage" $root }}
    imagePullPolicy: {{ $root.Values.buildkitd.image.pullPolicy }}
    command:
      - /bin/sh
      - -ec
      - cat /etc/ssl/certs/ca-certificates.crt /run/ca-bundle/ca.crt >/run/ca-certificates/ca-certificates.crt
    securityContext:
      {{- include "buildkit-lb.noRights" . | nindent 6 }}
    resources:
      {{- toYaml $root.Values.buildkitd.drain.resources | nindent 6 }}
    volumeMounts:
      - name: ca-bundle
        mountPath: /run/ca-bundle
        readOnly: true
      - name: ca-certificates
        mountPath: /run/ca-certificates
  {{- end }}
  {{- with $root.Values.buildkitd.initContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
containers:
  - name: buildkitd
    image: {{ include "buildkit-lb.buildkitdImage" $root }}
    imagePullPolicy: {{ $root.Values.buildkitd.image.pullPolicy }}
    args:
      {{- if $root.Values.buildkitd.rootless }}
      - --addr=unix:///run/user/1000/buildkit/buildkitd.sock
      {{- else }}
      - --addr=unix:///run/buildkit/buildkitd.sock
      {{- end }}
      - --addr=tcp://{{ $root.Values.listenAddress }}:1234
      {{- if $root.Values.buildkitd.rootless }}
      # The process namespaces of build steps need an unmasked /proc.
      - --oci-worker-no-process-sandbox
      {{- end }}
      {{- if include "buildkit-lb.daemonTLSSecret" $root }}
      - --tlscacert=/run/secrets/tls/ca.crt
      - --tlscert=/run/secrets/tls/tls.crt
      - --tlskey=/run/secrets/tls/tls.key
      {{- end }}
      {{- with $root.Values.buildkitd.metricsPort }}
      - --debugaddr={{ $root.Values.listenAddress }}:{{ int . }}
      {{- end }}
      {{- with $root.Values.buildkitd.extraArgs }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $root.Values.buildkitd.extraEnv }}
    env:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    ports:
      - name: buildkit
        containerPort: 1234
    readinessProbe:
      {{- toYaml $root.Values.buildkitd.readinessProbe | nindent 6 }}
    livenessProbe:
      {{- toYaml $root.Values.buildkitd.livenessProbe | nindent 6 }}
    # A buildkitd that was told to end accepts no further calls, even of running builds. So it waits until the
    # container "drain", which asks the proxies, says that it may end.
    lifecycle:
      preStop:
        exec:
          command:
            - /bin/sh
            - -c
            - |
              waited=0
              until [ -e /run/buildkit-lb/drained ] || [ "$waited" -ge {{ add (int $root.Values.buildkitd.drain.timeoutSeconds) 15 }} ]; do
                sleep 1
                waited=$((waited + 1))
              done
    securityContext:
      {{- if $root.Values.buildkitd.rootless }}
      runAsUser: 1000
      runAsGroup: 1000
      runAsNonRoot: true
      # Builds make namespaces and mounts without privileges, which the default profiles forbid.
      seccompProfile:
        type: Unconfined
      appArmorProfile:
        type: Unconfined
      {{- else }}
      privileged: true
      {{- end }}
    resources:
      {{- toYaml $root.Values.buildkitd.resources | nindent 6 }}
    volumeMounts:
      - name: cache
        mountPath: {{ include "buildkit-lb.buildkitdRoot" $root }}
      - name: drained
        mountPath: /run/buildkit-lb
        readOnly: true
      {{- if include "buildkit-lb.daemonTLSSecret" $root }}
      - name: tls
        mountPath: /run/secrets/tls
        readOnly: true
      {{- end }}
      {{- if $root.Values.buildkitd.config }}
      - name: config
        mountPath: {{ include "buildkit-lb.buildkitdConfigDirectory" $root }}
        readOnly: true
      {{- end }}
      {{- if $ca }}
      - name: ca-certificates
        mountPath: /etc/ssl/certs/ca-certificates.crt
        subPath: ca-certificates.crt
        readOnly: true
      {{- end }}
      {{- with $root.Values.buildkitd.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  # This container hears of the end of the pod at once. It asks every proxy to send no more builds to this daemon, and
  # says when the daemon's builds have ended. The container is separate because of the token: neither buildkitd nor
  # any build step can find the token in its files, environment or processes.
  - name: drain
    image: {{ include "buildkit-lb.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
      - drain-backend
      - $(POD_NAME)
      - --address=$(POD_IPS)
      - --proxy={{ $root.Values.buildkitd.drain.proxies | default (printf "%s-admin.$(POD_NAMESPACE)" (include "buildkit-lb.fullname" $root)) }}.svc.{{ $root.Values.buildkitd.clusterDomain }}.:9090
      - --token-file=/run/secrets/buildkit-lb/token
      {{- if $root.Values.adminTLS.existingSecret }}
      - --proxy-tls-dir=/run/secrets/admin-tls
      - --proxy-tls-server-name={{ include "buildkit-lb.adminServerName" $root }}
      {{- end }}
      - --timeout={{ int $root.Values.buildkitd.drain.timeoutSeconds }}s
      - --at-signal
      - --done-file=/run/buildkit-lb/drained
    env:
      - name: POD_NAME
        valueFrom:
          fieldRef:
            fieldPath: metadata.name
      - name: POD_NAMESPACE
        valueFrom:
          fieldRef:
            fieldPath: metadata.namespace
      - name: POD_IPS
        valueFrom:
          fieldRef:
            fieldPath: status.podIPs
    securityContext:
      {{- include "buildkit-lb.noRights" . | nindent 6 }}
    resources:
      {{- toYaml $root.Values.buildkitd.drain.resources | nindent 6 }}
    volumeMounts:
      {{- include "buildkit-lb.tokenMount" $root | nindent 6 }}
      {{- if $root.Values.adminTLS.existingSecret }}
      - name: admin-tls
        mountPath: /run/secrets/admin-tls
        readOnly: true
      {{- end }}
      - name: drained
        mountPath: /run/buildkit-lb
  {{- with $root.Values.buildkitd.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- if $ca }}
  - name: ca-bundle
    {{- $ca | nindent 4 }}
  - name: ca-certificates
    emptyDir: {}
  {{- end }}
  {{- if not .volume }}
  - name: cache
    emptyDir:
      {{- toYaml $root.Values.buildkitd.emptyDir | nindent 6 }}
  {{- end }}
  {{- with $root.Values.adminTLS.existingSecret }}
  # The authority that signs the certificates of the admin ports. It holds no key.
  - name: admin-tls
    secret:
      secretName: {{ . }}
      items: [{key: ca.crt, path: ca.crt}]
  {{- end }}
  {{- with include "buildkit-lb.daemonTLSSecret" $root }}
  - name: tls
    secret:
      secretName: {{ . }}
  {{- end }}
  {{- if $root.Values.buildkitd.config }}
  - name: config
    configMap:
      name: {{ $root.Values.buildkitd.name }}
  {{- end }}
  {{- with $root.Values.buildkitd.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "buildkit-lb.tokenVolume" $root | nindent 2 }}
  - name: drained
    emptyDir: {}
{{- end }}

{{/* Where the authorities of buildkitd.caBundle are: a volume's source, or nothing. */}}
{{- define "buildkit-lb.caBundle" -}}
{{- $configMap := .Values.buildkitd.caBundle.configMap }}
{{- $secret := .Values.buildkitd.caBundle.secret }}
{{- if and $configMap $secret }}
{{- fail "buildkitd.caBundle: name a ConfigMap or a Secret, not both" }}
{{- else if $configMap -}}
configMap:
  name: {{ $configMap }}
  items: [{key: {{ .Values.buildkitd.caBundle.key }}, path: ca.crt}]
{{- else if $secret -}}
secret:
  secretName: {{ $secret }}
  items: [{key: {{ .Values.buildkitd.caBundle.key }}, path: ca.crt}]
{{- end }}
{{- end }}
