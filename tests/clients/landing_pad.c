/* A client with an `SSL_write` of its own: arguments are the port and what it writes, twenty times. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int SSL_write(void *object, const void *bytes, int length);
__attribute__((noinline)) static int send_all(int socket, const char *bytes, int length) {
    return (int)write(socket, bytes, (size_t)length);
}
__attribute__((noinline)) int SSL_write(void *object, const void *bytes, int length) {
    char secret[4096] = {0};
    for (int i = 0; i < length && i < 4096; i++) secret[i] = ((const char *)bytes)[i] ^ 0x5a;
    int first = send_all(*(int *)object, secret, length);
    return first == length ? length : send_all(*(int *)object, secret, length);
}
int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection, (struct sockaddr *)&to, sizeof to) != 0) return 1;
    for (int i = 0; i < 20; i++) { SSL_write(&connection, arguments[2], (int)strlen(arguments[2])); usleep(50000); }
    return 0;
}
