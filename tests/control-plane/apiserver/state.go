package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/server/v3/embed"
)

// state names the files of one control plane. What identifies it to its clients (certificate,
// token, signing key) is made once and found again by the next start.
type state struct {
	directory string
	// token is the administrator's.
	token string
}

func (s state) file(name string) string { return filepath.Join(s.directory, name) }

// openState makes the directory and whatever is missing in it.
func openState(directory string) (state, error) {
	// Files are named to the API server, which may look at them from elsewhere.
	directory, err := filepath.Abs(directory)
	if err != nil {
		return state{}, fmt.Errorf("find %s: %w", directory, err)
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return state{}, fmt.Errorf("make the directory of the state: %w", err)
	}
	s := state{directory: directory}
	tokens, err := ensureFile(s.file("tokens.csv"), newTokens)
	if err != nil {
		return state{}, err
	}
	s.token, _, _ = strings.Cut(string(tokens), ",")
	if _, err := ensureFile(s.file("service-account.key"), newKey); err != nil {
		return state{}, err
	}
	return s, nil
}

// ensureFile is the file's content, which is made if there is no file.
func ensureFile(path string, create func() ([]byte, error)) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return content, err
	}
	if content, err = create(); err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return content, os.WriteFile(path, content, 0o600)
}

// newTokens is a static token file with one administrator.
func newTokens() ([]byte, error) {
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	return []byte(hex.EncodeToString(secret) + ",admin,admin,system:masters\n"), nil
}

// newKey signs service account tokens.
func newKey() ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	block := pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return pem.EncodeToMemory(&block), nil
}

// writeKubeconfig writes the administrator's and gives its path.
func (s state) writeKubeconfig(server string) (string, error) {
	// The API server writes its own certificate with the authority that signed it.
	authority, err := os.ReadFile(s.file("apiserver.crt"))
	if err != nil {
		return "", fmt.Errorf("read the API server's certificate: %w", err)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: tests
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: admin
  user: {token: %s}
contexts:
- name: tests
  context: {cluster: tests, user: admin}
current-context: tests
`, server, base64.StdEncoding.EncodeToString(authority), s.token)
	path := s.file("kubeconfig")
	fresh := path + ".fresh"
	if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(fresh, path)
}

// startStore starts etcd on free ports of loopback and waits until it serves.
func startStore(s state) (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = s.file("etcd")
	config.LogLevel = "error"
	// A killed process loses nothing that the kernel has; only a dead machine would.
	config.UnsafeNoFsync = true
	// Only for clients without gRPC; it would dial the port it was told, which is 0.
	config.EnableGRPCGateway = false
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.ListenClientUrls, config.AdvertiseClientUrls = anyPort, anyPort
	config.ListenPeerUrls, config.AdvertisePeerUrls = anyPort, anyPort
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	store, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", config.Dir, err)
	}
	select {
	case <-store.Server.ReadyNotify():
		return store, nil
	case err := <-store.Err():
		store.Close()
		return nil, fmt.Errorf("etcd in %s: %w", config.Dir, err)
	}
}
